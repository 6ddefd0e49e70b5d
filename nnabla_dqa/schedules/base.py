"""What a schedule is, and what all of them check."""

from __future__ import annotations

from typing import Any, Dict, Protocol

from nnabla_dqa._util.checks import is_int, is_number


class Schedule(Protocol):
    """What drives the state of layers during training.

    Several can be attached to one solver, each for other arrays.
    """

    @property
    def steps(self) -> int:
        """Mini-batches of the whole training, hard phase included."""

    @property
    def soft_steps(self) -> int:
        """Mini-batches before the hard phase; ``steps`` if it has none."""

    def state(self, b: int) -> Dict[str, float]:
        """The values of state arrays for mini-batch ``b``, 1 to ``soft_steps``.

        By globs over the arrays' paths in a layer's state: ``"temperature"`` is
        attention's, ``"*/temperature"`` that of quantizers with one of their own.
        """


def check_steps(schedule: Any) -> None:
    """Raise ValueError unless steps and hard fraction of a schedule are right; make them plain."""
    name = type(schedule).__name__
    for field in ("steps", *(["steps_per_epoch"] if hasattr(schedule, "steps_per_epoch") else [])):
        value = getattr(schedule, field)
        if not is_int(value) or value <= 0:
            raise ValueError(f"{name}: {field}={value!r} is not a whole number above 0")
        object.__setattr__(schedule, field, int(value))
    fraction = schedule.hard_fraction
    if not is_number(fraction) or not 0 <= fraction < 1:
        raise ValueError(f"{name}: hard_fraction={fraction!r} is not a number from 0 to below 1")
    object.__setattr__(schedule, "hard_fraction", float(fraction))
    if schedule.steps >= 2**24:
        raise ValueError(f"{name}: steps={schedule.steps} is more than the 2^24 a run can count")


def soft_steps_of(schedule: Any) -> int:
    """The mini-batches before its hard phase, at least 1."""
    fraction = schedule.hard_fraction
    hard_steps: int = max(1, round(fraction * schedule.steps)) if fraction else 0
    return max(1, int(schedule.steps) - hard_steps)
