"""The files of a checkpoint: safetensors shards, lazy tensors, weight names, bounded JSON."""
