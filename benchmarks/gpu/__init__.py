"""What `benchmarks/gpu_check.py` checks and measures, piece by piece."""
