"""A bundle's graphs become TensorRT engines."""
