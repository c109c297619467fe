"""ONNX Runtime's CUDA provider."""
