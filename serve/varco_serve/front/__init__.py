"""HTTP: routes, bounds, keys, streams, metrics and logs. Holds no model."""
