"""What a budget does between the updates of a training: its price moves, and bits are chosen."""

from __future__ import annotations

from typing import Any

from nnabla_dqa.budget.choice import choose_bits
from nnabla_dqa.budget.pull import move_price
from nnabla_dqa.budget.state import budget_of, price_of

_CHOICES = 100
"""How often bits are chosen anew in the soft phase, for those who evaluate in it."""


def begin_budget(scope: Any) -> None:
    """At the start of a schedule: the price is 0, and bits are chosen by the first attention."""
    if budget_of(scope) is not None:
        price_of(scope).d = 0
        choose_bits(scope)


def follow_budget(scope: Any, step: int, soft_steps: int) -> None:
    """After update ``step``: while the mixtures are soft, move the price and choose bits.

    The last choice is that at the end of the soft phase, after ``soft_steps`` updates; it holds
    from then on.

    Args:
        scope: The dictionary of a parameter scope, with a budget or without.
        step: Updates done.
        soft_steps: Of the schedule.
    """
    if step > soft_steps or budget_of(scope) is None:
        return
    move_price(scope, soft_steps)
    if step * _CHOICES // soft_steps > (step - 1) * _CHOICES // soft_steps:
        choose_bits(scope)
