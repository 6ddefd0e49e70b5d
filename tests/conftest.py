"""Every test starts with empty parameters and NNabla's default context."""

from __future__ import annotations

from typing import Iterator

import nnabla as nn
import pytest
from hypothesis import HealthCheck, settings

settings.register_profile(
    "default", deadline=None, derandomize=True, suppress_health_check=list(HealthCheck)
)
settings.load_profile("default")


@pytest.fixture(autouse=True)
def _fresh_parameters() -> Iterator[None]:
    nn.clear_parameters()
    yield
    nn.clear_parameters()
