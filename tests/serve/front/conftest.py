"""A front over a double of the model, asked through ASGI or through real sockets."""
