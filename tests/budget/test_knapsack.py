"""The exact choice against trying everything."""

from __future__ import annotations

import itertools
import time

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from nnabla_dqa.budget.knapsack import best_choices

ITEMS = st.lists(
    st.lists(
        st.tuples(st.one_of(st.integers(-4, 0), st.floats(-80, 0)), st.integers(0, 30)),
        min_size=1,
        max_size=5,
    ),
    max_size=6,
)


def total(rows, chosen):
    return sum(row[k] for row, k in zip(rows, chosen))


@given(items=ITEMS, capacity=st.integers(0, 150))
def test_it_is_the_best_of_all_choices(items, capacity):
    """The highest value that fits, and of equal values the smallest."""
    values = [[v for v, _ in item] for item in items]
    sizes = [[s for _, s in item] for item in items]
    every = itertools.product(*[range(len(item)) for item in items])
    fitting = [c for c in every if total(sizes, c) <= capacity]
    found = best_choices(values, sizes, capacity)
    if not fitting:
        assert found is None
        return
    best = max(total(values, c) for c in fitting)
    assert total(sizes, found) <= capacity
    assert abs(total(values, found) - best) <= 1e-9
    if all(float(v).is_integer() for row in values for v in row):
        assert total(sizes, found) == min(
            total(sizes, c) for c in fitting if total(values, c) == best
        )
    assert best_choices(values, sizes, capacity) == found


def test_a_hundred_layers_of_eight_quantizers_take_no_time():
    rng = np.random.RandomState(0)
    weights = (10 ** rng.uniform(2, 6.5, 100)).astype(int)
    sizes = [[-(-m * bits // 8) + 8 for bits in range(1, 9)] for m in weights]
    values = [-rng.exponential(30, 8) for _ in weights]
    started = time.perf_counter()
    for bits in (1.2, 2, 3, 5):
        capacity = int(weights.sum() / 8 * bits)
        assert total(sizes, best_choices(values, sizes, capacity)) <= capacity
    assert time.perf_counter() - started < 30
