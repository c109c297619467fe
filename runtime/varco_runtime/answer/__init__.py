"""What comes back: the answer, its JSON, COCO and hOCR forms, the painted picture."""
