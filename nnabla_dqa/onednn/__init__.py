"""Layers on oneDNN: parts of a graph that are computed as one function on a CPU."""
