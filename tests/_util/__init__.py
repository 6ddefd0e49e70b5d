"""Tests of ``nnabla_dqa._util``."""
