"""How attention cools."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, Dict

from nnabla_dqa._util.checks import is_number
from nnabla_dqa._util.registry import to_json
from nnabla_dqa._util.renamed import renamed
from nnabla_dqa.schedules.base import check_steps, soft_steps_of


def temperature(b: int, steps: int, start: float = 100.0, end: float = 0.03) -> float:
    """T of mini-batch ``b`` (DQA, arXiv 2103.13322, eq. 5).

    ``T(b) = T(0) psi^b`` with ``psi = (T(B) / T(0))^(1 / B)``.

    Args:
        b: 0 to ``steps``; 0 gives ``start``, ``steps`` gives ``end``.
        steps: B.
        start: T(0).
        end: T(B).
    """
    return float(start * math.exp(math.log(end / start) * b / steps))


@renamed(hard="hard_fraction")
@dataclasses.dataclass(frozen=True)
class TemperatureSchedule:
    """Cools attention exponentially, then uses the target quantizer alone.

    ``T`` follows :func:`temperature` from ``start`` to ``end`` over the soft
    steps, so that the mixture is nearly one-hot when the hard phase begins.

    Args:
        steps: Mini-batches (solver updates) of the whole training, hard phase included.
        start: T(0).
        end: T at the last soft step.
        hard_fraction: The fraction of the steps (at least one), at the end, in which
            every layer uses its target quantizer alone. 0 is the paper's schedule.

    Raises:
        ValueError: ``steps`` <= 0, a temperature <= 0 or not finite, or
            ``hard_fraction`` outside [0, 1).
    """

    steps: int
    start: float = 100.0
    end: float = 0.03
    hard_fraction: float = 0.1

    def __post_init__(self) -> None:
        check_steps(self)
        for field in ("start", "end"):
            value = getattr(self, field)
            if not is_number(value) or value <= 0:
                raise ValueError(
                    f"TemperatureSchedule: {field}={value!r} is not a temperature above 0"
                )
            object.__setattr__(self, field, float(value))

    @property
    def soft_steps(self) -> int:
        """Mini-batches before the hard phase, at least 1."""
        return soft_steps_of(self)

    def state(self, b: int) -> Dict[str, float]:
        """``{"temperature": T(b)}``."""
        return {"temperature": temperature(b, self.soft_steps, self.start, self.end)}

    def to_json(self) -> Dict[str, Any]:
        """The schedule as JSON values."""
        return to_json(self)
