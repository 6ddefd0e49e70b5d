"""Writing deployed networks as NNP files whose networks unpack their weights."""
