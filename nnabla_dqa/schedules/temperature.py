"""How attention cools."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, Dict, Optional

from nnabla_dqa._util.checks import is_number
from nnabla_dqa._util.registry import to_json
from nnabla_dqa._util.renamed import renamed
from nnabla_dqa.schedules.base import check_steps, soft_steps_of

MARGIN = -0.3
"""What :meth:`TemperatureSchedule.ceiling` ends on, in standard deviations: below the target."""


def temperature(b: int, steps: int, start: float = 100.0, end: float = 0.03) -> float:
    """T of mini-batch ``b`` (DQA, arXiv 2103.13322, eq. 5).

    ``T(b) = T(0) psi^b`` with ``psi = (T(B) / T(0))^(1 / B)``.

    Args:
        b: 0 to ``steps``; 0 gives ``start``, ``steps`` gives ``end``.
        steps: B.
        start: T(0).
        end: T(B).

    Examples:
        >>> import nnabla_dqa as dqa
        >>> [round(dqa.temperature(b, steps=100), 2) for b in (0, 50, 100)]
        [100.0, 1.73, 0.03]
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
        order_from: The fraction of the soft steps from which on the target's alpha rises
            above all others, see :meth:`ceiling`: when the hard phase begins, attention of
            every layer is on its target. None is the paper's: attention is left alone.

    Raises:
        ValueError: ``steps`` <= 0, a temperature <= 0 or not finite, or
            ``hard_fraction`` or ``order_from`` outside [0, 1).

    Examples:
        >>> import nnabla_dqa as dqa
        >>> schedule = dqa.TemperatureSchedule(steps=1000)
        >>> schedule.soft_steps  # then, for 100 steps, the target alone
        900
        >>> schedule.state(900)
        {'temperature': 0.03...}
    """

    steps: int
    start: float = 100.0
    end: float = 0.03
    hard_fraction: float = 0.1
    order_from: Optional[float] = None

    def __post_init__(self) -> None:
        check_steps(self)
        for field in ("start", "end"):
            value = getattr(self, field)
            if not is_number(value) or value <= 0:
                raise ValueError(
                    f"TemperatureSchedule: {field}={value!r} is not a temperature above 0"
                )
            object.__setattr__(self, field, float(value))
        if self.order_from is not None:
            if not is_number(self.order_from) or not 0 <= self.order_from < 1:
                raise ValueError(
                    f"TemperatureSchedule: order_from={self.order_from!r} is not a number from 0 "
                    f"to below 1, nor None"
                )
            object.__setattr__(self, "order_from", float(self.order_from))

    @property
    def soft_steps(self) -> int:
        """Mini-batches before the hard phase, at least 1."""
        return soft_steps_of(self)

    def state(self, b: int) -> Dict[str, float]:
        """``{"temperature": T(b)}``."""
        return {"temperature": temperature(b, self.soft_steps, self.start, self.end)}

    def ceiling(self, b: int, count: int) -> Optional[float]:
        """How far above the target's alpha others may be, in standard deviations of alpha.

        ``c(p) = m + (C - m) (1 - p) / (1 - p0)`` with the progress ``p = b / soft_steps``, ``p0``
        = ``order_from``, ``C = sqrt(2 (K - 1))``, the largest distance that K numbers can have,
        and ``m = -0.3``: others end below the target. Not from the paper.

        Args:
            b: Mini-batches done.
            count: K, the number of quantizers.

        Returns:
            None where nothing is held yet: without ``order_from``, or before it.
        """
        progress = min(b / self.soft_steps, 1.0)
        if self.order_from is None or progress <= self.order_from:
            return None
        left = (1 - progress) / (1 - self.order_from)
        return MARGIN + (math.sqrt(2 * (count - 1)) - MARGIN) * left

    def to_json(self) -> Dict[str, Any]:
        """The schedule as JSON values."""
        return to_json(self)
