"""How Binary-Relax's target gains weight."""

from __future__ import annotations

import dataclasses
from typing import Any, Dict, Optional

from nnabla_dqa._util.checks import is_number
from nnabla_dqa._util.registry import to_json
from nnabla_dqa._util.renamed import renamed
from nnabla_dqa.schedules.base import check_steps, soft_steps_of


@renamed(hard="hard_fraction")
@dataclasses.dataclass(frozen=True)
class RelaxSchedule:
    """Lets Binary-Relax's ``omega`` grow by ``rho`` after every epoch (DQA eq. 15).

    ``omega = start * rho^epoch``, epochs counted from 0. The defaults are the
    DQA paper's; ``original()`` gives those of Binary-Relax itself.

    Args:
        steps: Mini-batches of the whole training, hard phase included.
        steps_per_epoch: Mini-batches of one epoch.
        start: omega in the first epoch.
        rho: Growth an epoch. Over E epochs the target's coefficient becomes
            ``rho^E / (rho^E + K - 1)``: 0.995 after the paper's 300, but 0.75
            after 90.
        hard_fraction: The fraction of the steps, at the end, with the target alone.

    Raises:
        ValueError: ``steps`` or ``steps_per_epoch`` <= 0, ``start`` or ``rho``
            not positive and finite, or ``hard_fraction`` outside [0, 1).

    Examples:
        >>> import nnabla_dqa as dqa
        >>> schedule = dqa.RelaxSchedule(steps=3000, steps_per_epoch=10)
        >>> [round(schedule.state(b)["omega"], 2) for b in (1, 11, 2700)]
        [1.0, 1.02, 205.8]
        >>> short = dqa.RelaxSchedule.reaching(steps=100, steps_per_epoch=10)
        >>> round(short.state(90)["omega"])
        380
    """

    steps: int
    steps_per_epoch: int
    start: float = 1.0
    rho: float = 1.02
    hard_fraction: float = 0.1

    def __post_init__(self) -> None:
        check_steps(self)
        for field in ("start", "rho"):
            value = getattr(self, field)
            if not is_number(value) or value <= 0:
                raise ValueError(f"RelaxSchedule: {field}={value!r} is not a number above 0")
            object.__setattr__(self, field, float(value))

    @classmethod
    def original(
        cls,
        steps: int,
        steps_per_epoch: int,
        hard_fraction: float = 0.25,
        rho: Optional[float] = 1.04,
    ) -> RelaxSchedule:
        """What the published code of Binary-Relax (arXiv 1801.06313) does.

        Its ``lambda`` is 1 at first and is multiplied by 1.04 at the start of every epoch, that
        of the first included; its second phase, with the quantized weights alone, is the last
        50 of 200 epochs.

        Args:
            steps: Mini-batches of the whole training, hard phase included.
            steps_per_epoch: Mini-batches of one epoch.
            hard_fraction: The second phase.
            rho: Growth an epoch. None: from 1.04 to what the original's 150 epochs come to,
                1.04^150 = 359, over the epochs there are, in 150 parts if these are fewer.
        """
        if rho is None:
            soft = cls(steps, steps_per_epoch, hard_fraction=hard_fraction).soft_steps
            part = min(steps_per_epoch, max(1, soft // 150))
            return cls.reaching(steps, part, 1.04**150, hard_fraction, 1.04)
        return cls(steps, steps_per_epoch, start=rho, rho=rho, hard_fraction=hard_fraction)

    @classmethod
    @renamed(hard="hard_fraction")
    def reaching(
        cls,
        steps: int,
        steps_per_epoch: int,
        growth: float = 380.0,
        hard_fraction: float = 0.1,
        start: float = 1.0,
    ) -> RelaxSchedule:
        """A schedule whose omega goes from ``start`` to ``growth`` at its last soft epoch.

        380 is what 300 epochs of 1.02 come to, so that a short training sees
        the whole relaxation of the paper's long one.
        """
        probe = cls(steps, steps_per_epoch, start=start, hard_fraction=hard_fraction)
        if not is_number(growth) or growth < probe.start:
            raise ValueError(f"RelaxSchedule: growth={growth!r} is not a number from {start:g} on")
        epochs = max(1, (probe.soft_steps - 1) // steps_per_epoch)
        return dataclasses.replace(probe, rho=(growth / probe.start) ** (1 / epochs))

    @property
    def soft_steps(self) -> int:
        """Mini-batches before the hard phase, at least 1."""
        return soft_steps_of(self)

    def state(self, b: int) -> Dict[str, float]:
        """``{"omega": start * rho^epoch}``."""
        return {"omega": self.start * self.rho ** ((b - 1) // self.steps_per_epoch)}

    def to_json(self) -> Dict[str, Any]:
        """The schedule as JSON values."""
        return to_json(self)
