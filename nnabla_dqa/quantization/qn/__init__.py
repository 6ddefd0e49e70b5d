"""Quantization Networks: sums of sigmoids that become steps (arXiv 1911.09464)."""
