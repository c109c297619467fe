"""The peers of `benchmarks.peers`: one file each, and the protocol their processes speak."""
