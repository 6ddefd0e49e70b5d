"""Which quantizer of each layer remains, so that all of them meet the budget."""

from __future__ import annotations

from typing import Any, List

import numpy as np

from nnabla_dqa.budget.knapsack import best_choices
from nnabla_dqa.budget.sizes import bytes_of_choices, float_bytes
from nnabla_dqa.budget.state import budget_of, check_budget, weights_of
from nnabla_dqa.layers.tensors import QuantizedTensor

_LEAST = float(np.finfo(np.float32).smallest_subnormal)
"""Coefficients that float32 has no number for count as this."""


def choose_bits(scope: Any) -> None:
    """Write each layer's choice into its state, from the attention and the weights as they are.

    Of all choices ``c`` that meet the budget it is the one that attention gives the highest
    probability, ``argmax_c sum_l log a_l,c_l``. Bytes that it leaves go to layers that get a
    larger quantizer for them: such that the sum over the layers of ``|W - Q(W)|^2 / |W|^2`` falls
    most. Both are solved exactly.

    Raises:
        BudgetError: The scope has other layers than when it was given its budget, and these
            cannot meet it.
    """
    size, layers = budget_of(scope), weights_of(scope)
    assert size is not None
    check_budget(scope, layers, size)
    room = size - float_bytes(scope, layers)
    sizes = [bytes_of_choices(layer) for layer in layers]
    # Layers that are not mixed have one choice; it counts with its bytes.
    chosen = best_choices([_log_attention(layer) for layer in layers], sizes, room)
    assert chosen is not None
    chosen = _raised(layers, sizes, room, chosen)
    for layer, index in zip(layers, chosen):
        if layer.chosen is not None and layer.target != index:
            layer.chosen.d = layer.mixture.alone(index)


def _log_attention(layer: QuantizedTensor) -> List[float]:
    logs: List[float] = np.log(np.maximum(layer.attention().astype(np.float64), _LEAST)).tolist()
    return logs


def _raised(
    layers: List[QuantizedTensor], sizes: List[List[int]], room: int, chosen: List[int]
) -> List[int]:
    """The choices with the bytes that are left over spent on the largest errors."""
    left = room - sum(own[k] for own, k in zip(sizes, chosen))
    options = [
        [k] + [j for j, size in enumerate(own) if own[k] < size <= own[k] + left]
        for own, k in zip(sizes, chosen)
    ]
    if all(len(own) == 1 for own in options):
        return chosen
    gains = [
        [-error(layer, k) for k in own] if len(own) > 1 else [0.0]
        for layer, own in zip(layers, options)
    ]
    better = best_choices(gains, [[s[k] for k in o] for s, o in zip(sizes, options)], room)
    assert better is not None
    return [own[k] for own, k in zip(options, better)]


def error(layer: QuantizedTensor, index: int) -> float:
    """``|W - Q(W)|^2 / |W|^2`` of one quantizer; 0 for weights of zeros. Reads only."""
    w = layer.weight.d
    q = layer.mixture.quantizers[index].quantize(w, layer.quantizer_state(index))
    power = float(np.square(w, dtype=np.float64).sum())
    wrong = float(np.square(np.subtract(w, q, dtype=np.float64)).sum())
    return wrong / power if power else 0.0
