"""GPTQ and compressed-tensors: stored integers and FP8, whatever their layout."""
