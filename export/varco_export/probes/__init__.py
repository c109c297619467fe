"""The exact model's answers, computed from the checkpoint and put into a bundle."""
