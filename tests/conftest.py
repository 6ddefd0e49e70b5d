"""Every test starts with empty parameters and NNabla's default context."""

from __future__ import annotations

import contextlib
from typing import Iterator

import nnabla as nn
import pytest

with contextlib.suppress(ModuleNotFoundError):  # tests/gpu needs only pytest and numpy.
    from hypothesis import HealthCheck, settings

    # The same examples in every run, fewer of them for `make check`;
    # --hypothesis-profile=nightly draws new ones and prints how a failure is repeated.
    COMMON = {"deadline": None, "suppress_health_check": list(HealthCheck)}
    settings.register_profile("default", derandomize=True, **COMMON)
    settings.register_profile("check", derandomize=True, max_examples=20, **COMMON)
    settings.register_profile("nightly", derandomize=False, print_blob=True, **COMMON)
    settings.load_profile("default")

CPU = nn.Context(["cpu:float"], "", "0")


@pytest.fixture(autouse=True)
def _fresh_state() -> Iterator[None]:
    nn.clear_parameters()
    nn.set_default_context(CPU)
    yield
    nn.clear_parameters()
    # NNabla's own loader makes the context of a file the default one.
    nn.set_default_context(CPU)
