"""Quantizers of what enters a layer: a module each."""
