"""Quantizers of the methods that are named beside DQA: a module each. ``docs/neighbours.md``."""
