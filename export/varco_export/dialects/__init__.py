"""The operators that networks are written in: ONNX Runtime's, CUDA's, TensorRT's."""
