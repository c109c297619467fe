"""onnxruntime's CUDA provider without a GPU: real dispatch, real captures, kernels that compute nothing.

The published onnxruntime-gpu runs on stub libraries (`stubs/`) in place of CUDA's. They log every launch, copy and
allocation. So the tests see which kernel the provider takes for a node, that every node has one, that captures succeed,
and what is copied and allocated when. They see no number that a kernel computes, and no time.

make test-provider     # in an environment of its own, .venv-provider; skipped in every other
"""
