"""The budget of a parameter scope: how many bytes, and what a byte too many costs.

It is kept beside the number of updates, so it is saved and loaded with the weights::

    dqa/step      updates done
    dqa/budget    bytes: whole mebibytes, and the rest
    dqa/price     mu of the penalty; the second number stays 0

and each mixture of weights has ``chosen`` in its own state.
"""

from __future__ import annotations

from typing import Any, Dict, List, Optional

import nnabla as nn
import numpy as np

from nnabla_dqa.budget.sizes import bytes_of_choices, float_bytes
from nnabla_dqa.budget.units import BudgetError
from nnabla_dqa.layers.build import add_choice
from nnabla_dqa.layers.tensors import (
    BUDGET,
    PRICE,
    STATE_SCOPE,
    QuantizedTensor,
    find_quantized,
    state_scope,
)
from nnabla_dqa.mixing.mixture import CHOSEN

_WHOLE = 2**20
"""float32 holds whole numbers up to 2^24; two of them hold any size."""


def set_budget(scope: Any, size: int) -> None:
    """Give the weights of a scope so many bytes, in place of the budget they may have had.

    The price of an equal budget stays as it is, as when a training goes on; it starts as 0.

    Args:
        scope: The dictionary of a parameter scope in which the model has been built.
        size: In bytes, of what :func:`check_budget` counts.

    Raises:
        BudgetError: As of :func:`check_budget`.
    """
    layers = weights_of(scope)
    check_budget(scope, layers, size)
    content = np.array(divmod(size, _WHOLE), np.float32)
    with nn.parameter_scope("", scope), nn.parameter_scope(STATE_SCOPE):
        known = nn.parameter.get_parameter(BUDGET)
        if known is None or not np.array_equal(known.d, content):
            fresh = nn.parameter.get_parameter_or_create(
                BUDGET, content.shape, content, need_grad=False
            )
            fresh.d = content
            price = nn.parameter.get_parameter_or_create(
                PRICE, (1, 2), np.zeros((1, 2), np.float32), need_grad=False
            )
            price.d = 0
    for layer in layers:
        if layer.mixture.is_mixed and layer.chosen is None:
            with nn.parameter_scope("", layer.scope), nn.parameter_scope(state_scope(layer.key)):
                add_choice(layer.mixture)


def forget_budget(scope: Any) -> None:
    """Take the budget of a scope away: every layer ends on its target again."""
    own: Dict[str, Any] = scope.get(STATE_SCOPE, {})
    for name in (BUDGET, PRICE):
        own.pop(name, None)
    for layer in find_quantized(scope):
        layer.scope[state_scope(layer.key)].pop(CHOSEN, None)


def budget_of(scope: Any) -> Optional[int]:
    """The bytes that the weights of a scope may have, None without a budget."""
    array = scope.get(STATE_SCOPE, {}).get(BUDGET)
    if array is None:
        return None
    whole, rest = array.d.tolist()
    return int(whole) * _WHOLE + int(rest)


def price_of(scope: Any) -> Any:
    """The parameter with ``mu``, shape (1, 2); a budget has it."""
    return scope[STATE_SCOPE][PRICE]


def weights_of(scope: Any) -> List[QuantizedTensor]:
    """The quantized weights of a scope."""
    return [tensor for tensor in find_quantized(scope) if tensor.is_weight]


def check_budget(scope: Any, layers: List[QuantizedTensor], size: int) -> None:
    """Refuse a budget that cannot be met, or that nothing in a scope can follow.

    Counted is what ``nnabla-dqa summary`` adds up in column ``packed`` of the deployed file:
    codes and ranges of quantized weights, and everything else as float32.

    Args:
        scope: The dictionary of a parameter scope.
        layers: Its quantized weights.
        size: In bytes.

    Raises:
        BudgetError: Says which layer, or the least size possible.
    """
    mixed = [layer for layer in layers if layer.mixture.is_mixed]
    if not mixed:
        raise BudgetError(
            "a budget chooses between the quantizers of each layer, and no layer has more than "
            "one; give for example minmax:2,3,4,8"
        )
    for layer in mixed:
        if not layer.mixture.mixing.penalised:
            raise BudgetError(
                f"a budget needs attention, which learns what a layer needs; layer {layer.name} is "
                f"mixed by {layer.mixture.mixing}"
            )
    for tensor in find_quantized(scope):
        found = [q for q in tensor.mixture.quantizers if q.rows_are_channels]
        if found:
            raise BudgetError(
                f"layer {tensor.name}: {found[0]} puts numbers of its channels into the deployed "
                f"file, which a budget does not count; use other activations"
            )
    low = sum(min(bytes_of_choices(layer)) for layer in layers)
    fixed = float_bytes(scope, layers)
    if size < low + fixed:
        raise BudgetError(
            f"{size:,} bytes are too few; the least possible are {low + fixed:,}: {low:,} of "
            f"quantized weights with the fewest bits each, {fixed:,} of parameters that stay "
            f"float32"
        )
