"""Measurements; RESULTS.md holds what they gave."""
