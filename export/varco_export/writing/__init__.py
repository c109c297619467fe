"""An ONNX graph streamed to disk, files hashed while written, folders whole or absent."""
