"""The parts of `benchmarks.robustness`: one file for each way in which things are damaged."""
