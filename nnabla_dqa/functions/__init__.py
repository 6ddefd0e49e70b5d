"""The mixture of quantizers as graph functions: one backend a module."""

from nnabla_dqa.functions.backends import (
    BackendError,
    BackendWarning,
    available_backends,
    backend,
    current_backend,
)
from nnabla_dqa.functions.choice import mixture
from nnabla_dqa.functions.release import release_mixtures

__all__ = [
    "BackendError",
    "BackendWarning",
    "available_backends",
    "backend",
    "current_backend",
    "mixture",
    "release_mixtures",
]
