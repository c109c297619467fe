"""Measures a bundle on this machine: `varco bench`. `stages.measure` does the work, `report` shows it."""
