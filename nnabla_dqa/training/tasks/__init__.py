"""What can be trained: networks of NNP files, and models of this package."""
