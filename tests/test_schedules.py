"""Eq. 5, Binary-Relax's growth, and where the hard end begins."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nnabla_dqa import (
    RelaxSchedule,
    SharpeningSchedule,
    SlopeSchedule,
    TemperatureSchedule,
    inverse_slope,
    temperature,
)
from nnabla_dqa.schedules import schedule_from_json
from tests import reference


@given(st.integers(1, 200_000), st.floats(0, 1), st.floats(1e-2, 1e3), st.floats(1e-6, 1e2))
def test_temperature_equals_eq_5(steps, share, start, end):
    b = round(share * steps)
    expected = reference.temperature(b, steps, start, end)
    assert temperature(b, steps, start, end) == pytest.approx(expected, rel=1e-6)


def test_values_of_the_paper():
    """psi and T at shares of CIFAR's 117,300 mini-batches (methods, 1.2)."""
    steps = 300 * 391
    assert temperature(1, steps) / 100 == pytest.approx(0.99993085, abs=1e-8)
    for share, value in ((1 / 3, 6.69), (0.5, 1.73), (2 / 3, 0.448), (0.8, 0.152), (1, 0.03)):
        assert temperature(round(share * steps), steps) == pytest.approx(value, rel=5e-3)


def test_hard_end():
    schedule = TemperatureSchedule(steps=1000)
    assert schedule.soft_steps == 900
    assert schedule.state(900)["temperature"] == pytest.approx(0.03)
    paper = TemperatureSchedule(steps=1000, hard_fraction=0)
    assert paper.soft_steps == 1000
    assert paper.state(500)["temperature"] == pytest.approx(np.sqrt(100 * 0.03))
    assert TemperatureSchedule(steps=1, hard_fraction=0.9).soft_steps == 1
    assert TemperatureSchedule(steps=3, hard_fraction=0.1).soft_steps == 2


@given(st.integers(1, 10_000), st.floats(0, 1), st.floats(0, 0.99), st.integers(2, 6))
def test_the_ceiling_falls_from_the_largest_distance_to_below_the_target(steps, share, begin, k):
    schedule = TemperatureSchedule(steps, hard_fraction=0.3, order_from=begin)
    b = round(share * schedule.soft_steps)
    p, highest = b / schedule.soft_steps, np.sqrt(2 * (k - 1))
    found = schedule.ceiling(b, k)
    if p <= begin:
        assert found is None
    else:
        assert found == pytest.approx(-0.3 + (highest + 0.3) * (1 - p) / (1 - begin), abs=1e-9)
    assert schedule.ceiling(schedule.soft_steps, k) == pytest.approx(-0.3)
    assert TemperatureSchedule(steps, hard_fraction=0.3).ceiling(b, k) is None


def test_no_numbers_are_farther_apart_than_the_first_ceiling():
    """``order_from`` begins to hold where nothing can be above it yet."""
    rng = np.random.RandomState(0)
    for k in (2, 3, 5):
        numbers = rng.standard_cauchy((1000, k))
        distance = (np.ptp(numbers, axis=1) / numbers.std(axis=1, ddof=1)).max()
        assert distance <= np.sqrt(2 * (k - 1)) * (1 + 1e-9)


@pytest.mark.parametrize("value", [-0.1, 1, 1.5, np.nan, "0.5", True])
def test_order_from_is_a_fraction(value):
    with pytest.raises(ValueError, match="TemperatureSchedule: order_from=") as caught:
        TemperatureSchedule(10, order_from=value)
    assert str(caught.value).endswith("is not a number from 0 to below 1, nor None")


def test_relax_grows_once_an_epoch():
    schedule = RelaxSchedule(steps=300 * 10, steps_per_epoch=10, hard_fraction=0)
    assert [schedule.state(b)["omega"] for b in (1, 10, 11, 20, 21)] == pytest.approx(
        [1, 1, 1.02, 1.02, 1.02**2]
    )
    assert schedule.state(3000)["omega"] == pytest.approx(1.02**299)
    reaching = RelaxSchedule.reaching(400, 10, growth=380, hard_fraction=0.1)
    assert reaching.state(reaching.soft_steps)["omega"] == pytest.approx(380)
    original = RelaxSchedule.original(steps=200 * 10, steps_per_epoch=10)
    assert original.soft_steps == 1500
    assert original.state(1500)["omega"] == pytest.approx(1.04**150)


def test_sharpening_rises_once_an_epoch_from_its_first_value():
    """arXiv 1911.09464, section 4: T = epoch x 5 over 55 epochs."""
    paper = SharpeningSchedule(55 * 10, 10, hard_fraction=0)
    found = [paper.state(b)["*/temperature"] for b in (1, 10, 11, 541, 550)]
    assert found == [5, 5, 10, 275, 275]
    assert SharpeningSchedule.reaching(550, 10, hard_fraction=0) == paper
    short = SharpeningSchedule.reaching(4 * 10, 10, end=1000, hard_fraction=0.25)
    assert short.state(short.soft_steps)["*/temperature"] == pytest.approx(1000)
    assert short.soft_steps == 30
    capped = SharpeningSchedule(100, 1, per_epoch=50, highest=2000)
    assert capped.state(90)["*/temperature"] == 2000
    assert schedule_from_json(short.to_json()) == short


@given(st.floats(0, 1), st.floats(0.01, 200), st.floats(0, 1))
def test_inverse_slope_is_the_normalized_mirror_sigmoid(progress, steepness, center):
    """(g(f) - g(1)) / (g(0) - g(1)), g the falling logistic function (published code of PARQ)."""

    def g(f):
        return 1 / (1 + np.exp(steepness * (f - center)))

    expected = (g(progress) - g(1)) / (g(0) - g(1))
    assert inverse_slope(progress, steepness, center) == pytest.approx(expected, abs=1e-9)


def test_slope_goes_from_1_to_0_and_ends_hard():
    schedule = SlopeSchedule(200, steepness=10, hard_fraction=0.25)
    values = [schedule.state(b)["*/inverse_slope"] for b in range(1, 151)]
    assert schedule.soft_steps == 150
    assert (values[0], values[-1]) == (1, 0)
    assert all(a > b for a, b in zip(values, values[1:]))
    middle = SlopeSchedule(101, steepness=100, hard_fraction=0).state(51)["*/inverse_slope"]
    assert middle == pytest.approx(0.5)
    assert SlopeSchedule(1).state(1) == {"*/inverse_slope": 0}
    # Almost linear for a small steepness; no overflow for a large one.
    assert inverse_slope(0.3, steepness=0.01) == pytest.approx(0.7, abs=1e-3)
    assert [inverse_slope(f, steepness=1e6) for f in (0, 0.49, 0.51, 1)] == [1, 1, 0, 0]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: SlopeSchedule(10, steepness=0), "steepness=0 is not above 0"),
        (lambda: SlopeSchedule(10, center=2), "center=2 is not from 0 to 1"),
        (lambda: SharpeningSchedule(9, 0), "steps_per_epoch=0"),
        (lambda: SharpeningSchedule(9, 3, per_epoch=0), "per_epoch=0 is not a number above 0"),
        (lambda: SharpeningSchedule(9, 3, highest=-1), "highest=-1 is not a number above 0"),
        (lambda: SharpeningSchedule.reaching(9, 3, end=0), "end=0 is not a number above 0"),
        (lambda: TemperatureSchedule(0), "steps=0"),
        (lambda: TemperatureSchedule(-5), "steps=-5"),
        (lambda: TemperatureSchedule(2.5), "steps=2.5"),
        (lambda: TemperatureSchedule(2**24), "2\\^24"),
        (lambda: TemperatureSchedule(10, start=0), "start=0"),
        (lambda: TemperatureSchedule(10, end=-1), "end=-1"),
        (lambda: TemperatureSchedule(10, end=float("nan")), "end=nan"),
        (lambda: TemperatureSchedule(10, hard_fraction=1), "hard_fraction=1"),
        (lambda: TemperatureSchedule(10, hard_fraction=-0.1), "hard_fraction=-0.1"),
        (lambda: RelaxSchedule(10, 0), "steps_per_epoch=0"),
        (lambda: RelaxSchedule(10, 1, rho=0), "rho=0"),
        (lambda: RelaxSchedule(10, 1, start=float("inf")), "start=inf"),
        (lambda: RelaxSchedule.reaching(10, 1, growth=0.5), "growth=0.5"),
    ],
)
def test_wrong_arguments_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize(
    "schedule",
    [
        TemperatureSchedule(10, hard_fraction=0.5),
        RelaxSchedule(10, 2, rho=1.1),
        SlopeSchedule(10, 50.0),
    ],
    ids=str,
)
def test_json_round_trip(schedule):
    assert schedule_from_json(schedule.to_json()) == schedule
