"""How the small checkpoint `models/varco-tiny` was made: pictures with ground truth, trainer, evaluation."""
