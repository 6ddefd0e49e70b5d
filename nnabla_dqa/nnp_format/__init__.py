"""An NNP as it lies on disk: a zip with a definition and parameters; no quantization here."""
