"""What draws attention to a budget while it is soft: a penalty whose price rises and falls."""

from __future__ import annotations

from typing import Any, Optional

import nnabla.functions as F
import numpy as np

from nnabla_dqa.budget.state import budget_of, price_of
from nnabla_dqa.quantization.graph_ops import Variable, detach, lift, observed

RATE = 30.0
"""How far ``mu`` moves over the soft steps while the network is twice as large as its budget."""


def pull(
    scope: Any, expected: Variable, heading: Variable, like: Optional[Variable] = None
) -> Variable:
    """``mu (B(a) / budget - 1)`` as a graph of shape ().

    No gradient goes to ``mu``. Each backward pass leaves in the gradient of its array how
    far the network is heading above the budget, and 1, for :func:`move_price`.

    Args:
        scope: It has a budget.
        expected: ``B(a) / budget``, shape ().
        heading: ``B(e) / budget``, shape (), where ``e`` is one-hot on the largest attention.
        like: Tells whether a graph definition is recorded.
    """
    array = price_of(scope)
    above, ahead = (
        F.reshape(F.add_scalar(v, -1.0), (1, 1), inplace=False) for v in (expected, heading)
    )
    one = F.add_scalar(F.mul_scalar(ahead, 0.0), 1.0)
    values = detach(F.concatenate(ahead, one, axis=1))
    seen = observed(lift(array.get_unlinked_variable(need_grad=True), like), values)
    price = lift(array.get_unlinked_variable(need_grad=False), like)
    mu = F.slice(price, start=(0, 0), stop=(1, 1))
    array.grad.zero()
    return F.sum(F.add2(F.mul2(mu, above), seen), axis=(0, 1))


def move_price(scope: Any, soft_steps: int) -> None:
    """``mu <- max(0, mu + RATE (B(e) / budget - 1) / soft_steps)``, by what backward passes left.

    Dual ascent on the Lagrangian, one step an update. ``B(e)`` is what the network is heading
    for; while attention is warm ``B(a)`` stays where it is whatever alpha does, and ``mu`` would
    rise all the time. Of several backward passes it is the mean; without any, ``mu`` stays.
    """
    array = price_of(scope)
    above, passes = array.g.ravel().tolist()
    array.grad.zero()
    if passes and np.isfinite(above):
        mu = float(array.d[0, 0])
        array.d = [[max(0.0, mu + RATE * above / passes / soft_steps), 0.0]]


def forget_seen(scope: Any) -> None:
    """Drop what backward passes have left, as for a mini-batch that updates nothing."""
    if budget_of(scope) is not None:
        price_of(scope).grad.zero()
