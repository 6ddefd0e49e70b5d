"""Quantized tensors: their state, how a layer is built, and a report of them."""
