"""Deployed networks as ONNX files: packed weights, standard operators, checked in ONNX Runtime."""
