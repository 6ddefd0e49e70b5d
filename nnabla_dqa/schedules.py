"""Pure functions of the step: temperature, growth, slope, and when the hard phase begins.

Steps are mini-batches, counted from 1 as in the paper.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any, Dict, Optional, Protocol

from nnabla_dqa._util.checks import is_int, is_number
from nnabla_dqa._util.registry import Registry, to_json
from nnabla_dqa._util.renamed import renamed


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


def _check_steps(schedule: Any) -> None:
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


def _soft_steps(schedule: Any) -> int:
    fraction = schedule.hard_fraction
    hard_steps: int = max(1, round(fraction * schedule.steps)) if fraction else 0
    return max(1, int(schedule.steps) - hard_steps)


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
        _check_steps(self)
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
        return _soft_steps(self)

    def state(self, b: int) -> Dict[str, float]:
        """``{"temperature": T(b)}``."""
        return {"temperature": temperature(b, self.soft_steps, self.start, self.end)}

    def to_json(self) -> Dict[str, Any]:
        """The schedule as JSON values."""
        return to_json(self)


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
    """

    steps: int
    steps_per_epoch: int
    start: float = 1.0
    rho: float = 1.02
    hard_fraction: float = 0.1

    def __post_init__(self) -> None:
        _check_steps(self)
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
            steps, steps_per_epoch: As of the class.
            hard_fraction: The second phase.
            rho: Growth an epoch. None: from 1.04 to what the original's 150 epochs come to,
                1.04^150 = 359, over the epochs there are: the same as 1.04 for 150 of them.
        """
        if rho is None:
            return cls.reaching(steps, steps_per_epoch, 1.04**150, hard_fraction, 1.04)
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
        return _soft_steps(self)

    def state(self, b: int) -> Dict[str, float]:
        """``{"omega": start * rho^epoch}``."""
        return {"omega": self.start * self.rho ** ((b - 1) // self.steps_per_epoch)}

    def to_json(self) -> Dict[str, Any]:
        """The schedule as JSON values."""
        return to_json(self)


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
    """

    steps: int
    steps_per_epoch: int
    per_epoch: float = 5.0
    highest: float = 2000.0
    hard_fraction: float = 0.1

    def __post_init__(self) -> None:
        _check_steps(self)
        for field in ("per_epoch", "highest"):
            value = getattr(self, field)
            if not is_number(value) or value <= 0:
                raise ValueError(f"SharpeningSchedule: {field}={value!r} is not a number above 0")
            object.__setattr__(self, field, float(value))

    @classmethod
    def reaching(
        cls, steps: int, steps_per_epoch: int, end: float = 275.0, hard_fraction: float = 0.1
    ) -> SharpeningSchedule:
        """A schedule whose T is ``end`` in its last soft epoch.

        275 is what 55 epochs of 5 come to, so that a short training ends as sharp as the
        paper's long one.
        """
        if not is_number(end) or end <= 0:
            raise ValueError(f"SharpeningSchedule: end={end!r} is not a number above 0")
        probe = cls(steps, steps_per_epoch, hard_fraction=hard_fraction)
        epochs = math.ceil(probe.soft_steps / probe.steps_per_epoch)
        return cls(steps, steps_per_epoch, end / epochs, max(end, 2000.0), hard_fraction)

    @property
    def soft_steps(self) -> int:
        """Mini-batches before the hard phase, at least 1."""
        return _soft_steps(self)

    def state(self, b: int) -> Dict[str, float]:
        """``{"*/temperature": T}``."""
        epoch = (b - 1) // self.steps_per_epoch + 1
        return {"*/temperature": min(self.highest, self.per_epoch * epoch)}

    def to_json(self) -> Dict[str, Any]:
        """The schedule as JSON values."""
        return to_json(self)


def inverse_slope(progress: float, steepness: float = 10.0, center: float = 0.5) -> float:
    """PARQ's ``s`` when this fraction of its course is done (arXiv 2503.15748, published code).

    ``s = (g(f) - g(1)) / (g(0) - g(1))`` with ``g(f) = 1 / (1 + exp(steepness (f - center)))``: it
    falls from 1 to 0, almost linearly for a steepness below 1, in one step at ``center`` for a
    large one.
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
    """

    steps: int
    steepness: float = 10.0
    hard_fraction: float = 0.1
    center: float = 0.5

    def __post_init__(self) -> None:
        _check_steps(self)
        if not is_number(self.steepness) or self.steepness <= 0:
            raise ValueError(f"SlopeSchedule: steepness={self.steepness!r} is not above 0")
        if not is_number(self.center) or not 0 <= self.center <= 1:
            raise ValueError(f"SlopeSchedule: center={self.center!r} is not from 0 to 1")
        object.__setattr__(self, "steepness", float(self.steepness))
        object.__setattr__(self, "center", float(self.center))

    @property
    def soft_steps(self) -> int:
        """Mini-batches before the hard phase, at least 1."""
        return _soft_steps(self)

    def state(self, b: int) -> Dict[str, float]:
        """``{"*/inverse_slope": s}``."""
        last = self.soft_steps
        progress = 1.0 if last == 1 else (b - 1) / (last - 1)
        return {"*/inverse_slope": inverse_slope(progress, self.steepness, self.center)}

    def to_json(self) -> Dict[str, Any]:
        """The schedule as JSON values."""
        return to_json(self)


SCHEDULES: Registry[Any] = Registry("schedule")
SCHEDULES.register(TemperatureSchedule)
SCHEDULES.register(RelaxSchedule)
SCHEDULES.register(SharpeningSchedule)
SCHEDULES.register(SlopeSchedule)
schedule_from_json = SCHEDULES.from_json
