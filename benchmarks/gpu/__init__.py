"""What `benchmarks/device.py` measures, piece by piece."""
