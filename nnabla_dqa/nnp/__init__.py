"""NNP files: read, converted, run, deployed, checked."""
