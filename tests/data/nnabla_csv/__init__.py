"""Tests of ``nnabla_dqa.data.nnabla_csv``."""
