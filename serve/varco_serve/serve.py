"""A server from its start to its end."""
