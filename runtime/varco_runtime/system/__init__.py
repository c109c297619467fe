"""The processor, its memory, and files written whole."""
