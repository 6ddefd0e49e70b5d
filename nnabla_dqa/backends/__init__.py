"""The mixture of quantizers as graph functions: one backend a module."""

from nnabla_dqa.backends.dispatch import backend_of, mixture
from nnabla_dqa.backends.release import release_mixtures
from nnabla_dqa.backends.select import (
    BackendError,
    BackendWarning,
    available_backends,
    backend,
    current_backend,
)

__all__ = [
    "BackendError",
    "BackendWarning",
    "available_backends",
    "backend",
    "backend_of",
    "current_backend",
    "mixture",
    "release_mixtures",
]
