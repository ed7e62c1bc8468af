"""The diffusion transformer of the comparison: network, process, text and training."""
