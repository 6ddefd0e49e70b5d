"""Tests of ``nnabla_dqa.data.photos``."""
