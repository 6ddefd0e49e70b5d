"""The deployed network, whatever it was made from, and the writers that turn it into files."""
