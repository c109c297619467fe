"""One network per file, in the order of its forward pass."""
