"""Plumbing that knows nothing of quantization."""
