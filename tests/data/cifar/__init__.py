"""Tests of ``nnabla_dqa.data.cifar``."""
