"""How the sigmoids of Quantization Networks become steps."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, Dict

from nnabla_dqa._util.checks import is_number
from nnabla_dqa._util.registry import to_json
from nnabla_dqa.schedules.base import check_steps, soft_steps_of

_PARTS = 55
"""The epochs of the paper, and in how many parts a shorter training goes its way."""


@dataclasses.dataclass(frozen=True)
class SharpeningSchedule:
    """Lets the sigmoids of :class:`~nnabla_dqa.QN` become steps (arXiv 1911.09464, section 4).

    ``T = min(highest, per_epoch * epoch)``, epochs counted from 1: the ``temperature`` of each
    quantizer that has one of its own. The paper has 5 an epoch for ResNets and 10 for
    AlexNet and SSD, over 55 epochs.

    Args:
        steps: Mini-batches of the whole training, hard phase included.
        steps_per_epoch: Mini-batches of one epoch.
        per_epoch: What an epoch adds to T.
        highest: T grows no further; that of the published code.
        hard_fraction: The fraction of the steps, at the end, in which training itself uses
            the steps. 0 is the paper's schedule, which evaluates and deploys with steps alone.

    Raises:
        ValueError: ``steps`` or ``steps_per_epoch`` <= 0, ``per_epoch`` or ``highest`` not
            positive and finite, or ``hard_fraction`` outside [0, 1).

    Examples:
        >>> import nnabla_dqa as dqa
        >>> schedule = dqa.SharpeningSchedule(steps=550, steps_per_epoch=10, hard_fraction=0)
        >>> [schedule.state(b)["*/temperature"] for b in (1, 11, 550)]
        [5.0, 10.0, 275.0]
    """

    steps: int
    steps_per_epoch: int
    per_epoch: float = 5.0
    highest: float = 2000.0
    hard_fraction: float = 0.1

    def __post_init__(self) -> None:
        check_steps(self)
        for field in ("per_epoch", "highest"):
            value = getattr(self, field)
            if not is_number(value) or value <= 0:
                raise ValueError(f"SharpeningSchedule: {field}={value!r} is not a number above 0")
            object.__setattr__(self, field, float(value))

    @classmethod
    def reaching(
        cls, steps: int, steps_per_epoch: int, end: float = 275.0, hard_fraction: float = 0.1
    ) -> SharpeningSchedule:
        """A schedule whose T is ``end`` at its last soft step.

        275 is what 55 epochs of 5 come to, so that a short training ends as sharp as the
        paper's long one. One of fewer epochs takes 55 steps to it as well, within its epochs.
        """
        if not is_number(end) or end <= 0:
            raise ValueError(f"SharpeningSchedule: end={end!r} is not a number above 0")
        probe = cls(steps, steps_per_epoch, hard_fraction=hard_fraction)
        part = min(steps_per_epoch, math.ceil(probe.soft_steps / _PARTS))
        parts = math.ceil(probe.soft_steps / part)
        return cls(steps, part, end / parts, max(end, 2000.0), hard_fraction)

    @property
    def soft_steps(self) -> int:
        """Mini-batches before the hard phase, at least 1."""
        return soft_steps_of(self)

    def state(self, b: int) -> Dict[str, float]:
        """``{"*/temperature": T}``."""
        epoch = (b - 1) // self.steps_per_epoch + 1
        return {"*/temperature": min(self.highest, self.per_epoch * epoch)}

    def to_json(self) -> Dict[str, Any]:
        """The schedule as JSON values."""
        return to_json(self)
