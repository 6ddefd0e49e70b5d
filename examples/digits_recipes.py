"""The rows of the digits table, and what was compared to choose the recipe of the DQA rows."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, Optional, Tuple

import nnabla_dqa as dqa

LEARNING_RATE = 0.1
HARD = 2 / 3
STRENGTH = 500.0


@dataclasses.dataclass(frozen=True)
class Row:
    """One line of the table: a method with its quantizers, rule and recipe.

    ``hard`` is the share of the steps at the end on the target quantizer alone,
    ``strength`` the lambda of eq. 6, ``rate`` the learning-rate schedule
    (:func:`learning_rate`).
    """

    method: str
    quantizer: str
    quantizers: Tuple[dqa.Quantizer, ...]
    hard: float = HARD
    strength: float = STRENGTH
    rate: str = "late"
    relax: bool = False
    activations: Tuple[dqa.Quantizer, ...] = ()

    @property
    def bits(self) -> int:
        return self.quantizers[0].bits

    @property
    def mixing(self) -> Optional[dqa.MixingRule]:
        return dqa.BinaryRelax() if self.relax else None

    def schedule(self, steps: int, steps_per_epoch: int) -> Any:
        if len(self.quantizers) == 1:
            return None
        if self.relax:
            return dqa.RelaxSchedule.reaching(steps, steps_per_epoch, hard_fraction=self.hard)
        return dqa.TemperatureSchedule(steps, hard_fraction=self.hard)


MINMAX = ("min-max 2", "min-max 2/4/8", (dqa.MinMax(2), dqa.MinMax(4), dqa.MinMax(8)))
SAWB = ("SAWB 2", "SAWB 2/4/8", (dqa.SAWB(2), dqa.SAWB(4), dqa.SAWB(8)))
BINARY = ("BWN", "BWN/TWN/FP", (dqa.BWN(), dqa.TWN(), dqa.FullPrecision()))


def plain(family: Any, **options: Any) -> Row:
    return Row("Plain", family[0], family[2][:1], **options)


def mixed(family: Any, method: str = "DQA", **options: Any) -> Row:
    return Row(method, family[1], family[2], **options)


ROWS = (
    Row("Full precision", "-", (dqa.FullPrecision(),)),
    *(
        row
        for family in (MINMAX, SAWB)
        for row in (
            plain(family),
            mixed(family, "Binary-Relax", relax=True),
            mixed(family, "DQA, paper's schedule", hard=0.0),
            mixed(family),
        )
    ),
    plain(BINARY),
    mixed(BINARY, "DQA, paper's schedule", hard=0.0),
    mixed(BINARY),
    Row("Plain", "TWN", (dqa.TWN(),)),
)

# Activations with 2 bits too, all layers but the first, whose input are the images.
EMA = (dqa.EMAMinMax(2), dqa.EMAMinMax(4), dqa.EMAMinMax(8))
CLIPS = (dqa.PACT(2), dqa.PACT(4), dqa.PACT(8))
ACTIVATION_ROWS = tuple(
    dataclasses.replace(
        row,
        quantizer=f"{row.quantizer} + {name} {'2' if len(row.quantizers) == 1 else '2/4/8'}",
        activations=activations[: len(row.quantizers)],
    )
    for family, name, activations in ((MINMAX, "EMA min-max", EMA), (SAWB, "PACT", CLIPS))
    for row in (plain(family), mixed(family, "Binary-Relax", relax=True), mixed(family))
)
PICTURED = next(row for row in ROWS if row.method == "DQA")

# What was compared on the validation images to choose HARD, STRENGTH and the learning rate.
SWEEP = tuple(
    row
    for family in (MINMAX, SAWB, BINARY)
    for row in (
        plain(family),
        plain(family, rate="steps"),
        *(mixed(family, hard=hard) for hard in (0.0, 0.1, 1 / 3, 1 / 2, HARD)),
        *(mixed(family, strength=strength) for strength in (5.0, 50.0)),
        mixed(family, rate="steps"),
        mixed(family, hard=0.0, strength=5.0, rate="steps"),
    )
)


def learning_rate(kind: str, done: float) -> float:
    """The rate after the share ``done`` of the steps.

    ``"late"``: constant for the first half, then a cosine to zero, so that it
    is still alive when the target quantizer is alone. ``"steps"``: the
    paper's, divided by 10 after each third.
    """
    if kind == "steps":
        return LEARNING_RATE * 0.1 ** int(3 * done)
    return LEARNING_RATE * (1.0 if done < 0.5 else 0.5 * (1 + math.cos(2 * math.pi * (done - 0.5))))
