"""The parts of `python -m benchmarks.serve`: a server under load, beside the engine alone."""
