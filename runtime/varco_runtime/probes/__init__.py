"""A bundle proves itself on this device."""
