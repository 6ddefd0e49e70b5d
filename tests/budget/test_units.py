"""Sizes as people write them."""

from __future__ import annotations

import numpy as np
import pytest

from nnabla_dqa.budget.units import BudgetError, byte_size


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("100kB", 100_000),
        ("100KiB", 102_400),
        (" 1.5 MiB ", 1_572_864),
        ("0.25MB", 250_000),
        ("1GB", 10**9),
        ("1GiB", 2**30),
        ("4096", 4096),
        ("7B", 7),
        (100, 100),
        (np.int64(12), 12),
        (1e5, 100_000),
    ],
)
def test_sizes(text, size):
    assert byte_size(text) == size


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("100KB", "unit 'KB', which is none of B, kB, MB, GB, KiB, MiB, GiB"),
        ("100 kbit", "unit 'kbit'"),
        ("kB", "'kB' is no size; write bytes as a number, or such as 100kB"),
        ("-3kB", "is no size"),
        ("1e5", "is no size"),
        (0, "no size above 0 bytes"),
        ("0.1B", "no size above 0 bytes"),
        (-5, "no size above 0 bytes"),
        (1.5, "is no size"),
        (float("nan"), "is no size"),
        (True, "is no size"),
        (None, "is no size"),
        ([1], "is no size"),
    ],
)
def test_what_is_no_size_is_one_line(value, said):
    with pytest.raises(BudgetError) as error:
        byte_size(value)
    assert said in str(error.value)
    assert "\n" not in str(error.value)
