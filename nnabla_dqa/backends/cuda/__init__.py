"""The mixture's CUDA kernels."""
