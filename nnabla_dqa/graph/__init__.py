"""Rewriting NNabla graphs: NNP in, NNP out."""
