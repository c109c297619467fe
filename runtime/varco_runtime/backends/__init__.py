"""Which device runs a bundle, and what all devices share."""
