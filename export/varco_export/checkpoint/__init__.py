"""A whole checkpoint under canonical names, every tensor used exactly once."""
