"""The peers of `benchmarks.peers`: one file each, the protocol their processes speak, the contest and its report."""
