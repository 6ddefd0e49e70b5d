"""Bits by budget: the quantizer of each layer so that the deployed network meets a size."""
