"""The mixture of quantizers as graph functions: one backend a module."""

from nnabla_dqa.functions.portable import mixture

__all__ = ["mixture"]
