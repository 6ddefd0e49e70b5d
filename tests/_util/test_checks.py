"""Checks of plain values."""

from __future__ import annotations

import numpy as np
import pytest

from nnabla_dqa._util.checks import is_int


@pytest.mark.parametrize("value", [0, -3, 2**70, np.int64(4), np.uint8(1)])
def test_whole_numbers(value):
    assert is_int(value)


@pytest.mark.parametrize("value", [True, np.bool_(True), 1.0, np.float32(2), "3", None, [1]])
def test_other_values(value):
    assert not is_int(value)
