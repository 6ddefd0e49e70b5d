"""How the map of PARQ steepens."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, Dict

from nnabla_dqa._util.checks import is_number
from nnabla_dqa._util.registry import to_json
from nnabla_dqa.schedules.base import check_steps, soft_steps_of


def inverse_slope(progress: float, steepness: float = 10.0, center: float = 0.5) -> float:
    """PARQ's ``s`` when this fraction of its course is done (arXiv 2503.15748, published code).

    ``s = (g(f) - g(1)) / (g(0) - g(1))`` with ``g(f) = 1 / (1 + exp(steepness (f - center)))``: it
    falls from 1 to 0, almost linearly for a steepness below 1, in one step at ``center`` for a
    large one.

    Examples:
        >>> import nnabla_dqa as dqa
        >>> [round(dqa.inverse_slope(f), 3) for f in (0, 0.25, 0.5, 0.75, 1)]
        [1.0, 0.93, 0.5, 0.07, 0.0]
    """

    def g(f: float) -> float:
        # The logistic function without its overflow; constants cancel.
        return math.tanh(steepness * (center - f) / 2)

    return (g(progress) - g(1.0)) / (g(0.0) - g(1.0))


@dataclasses.dataclass(frozen=True)
class SlopeSchedule:
    """Lets the inverse slope of :class:`~nnabla_dqa.PARQ` fall from 1 to 0: :func:`inverse_slope`.

    It is 1 in the first step, and 0 in the last soft one and in those after it.

    Args:
        steps: Mini-batches of the whole training, hard phase included.
        steepness: Above 0.
        hard_fraction: The fraction of the steps, at the end, with the levels alone.
        center: Where it is steepest, as a fraction of the soft steps, from 0 to 1.

    Raises:
        ValueError: ``steps`` <= 0, ``steepness`` not above 0, ``center`` outside [0, 1], or
            ``hard_fraction`` outside [0, 1).

    Examples:
        >>> import nnabla_dqa as dqa
        >>> schedule = dqa.SlopeSchedule(steps=100, hard_fraction=0.25)
        >>> [round(schedule.state(b)["*/inverse_slope"], 2) for b in (1, 38, 75)]
        [1.0, 0.5, 0.0]
    """

    steps: int
    steepness: float = 10.0
    hard_fraction: float = 0.1
    center: float = 0.5

    def __post_init__(self) -> None:
        check_steps(self)
        if not is_number(self.steepness) or self.steepness <= 0:
            raise ValueError(f"SlopeSchedule: steepness={self.steepness!r} is not above 0")
        if not is_number(self.center) or not 0 <= self.center <= 1:
            raise ValueError(f"SlopeSchedule: center={self.center!r} is not from 0 to 1")
        object.__setattr__(self, "steepness", float(self.steepness))
        object.__setattr__(self, "center", float(self.center))

    @property
    def soft_steps(self) -> int:
        """Mini-batches before the hard phase, at least 1."""
        return soft_steps_of(self)

    def state(self, b: int) -> Dict[str, float]:
        """``{"*/inverse_slope": s}``."""
        last = self.soft_steps
        progress = 1.0 if last == 1 else (b - 1) / (last - 1)
        return {"*/inverse_slope": inverse_slope(progress, self.steepness, self.center)}

    def to_json(self) -> Dict[str, Any]:
        """The schedule as JSON values."""
        return to_json(self)
