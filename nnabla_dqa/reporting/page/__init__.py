"""One HTML file about runs and NNP files, which needs no network: ``nnabla-dqa report``."""
