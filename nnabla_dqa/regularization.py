"""The penalty that draws attention to low bit widths."""

from __future__ import annotations

from functools import reduce
from typing import Any, Dict, List, Optional, Sequence, Tuple, Union

import nnabla as nn
import nnabla.functions as F
import numpy as np
from nnabla.core.graph_def import current_graph_builder

from nnabla_dqa._util.checks import is_number
from nnabla_dqa._util.devices import in_float32
from nnabla_dqa._util.warn import warn
from nnabla_dqa.budget.pull import pull
from nnabla_dqa.budget.sizes import bytes_of_choices, float_bytes
from nnabla_dqa.budget.state import budget_of, forget_budget, set_budget
from nnabla_dqa.budget.units import byte_size
from nnabla_dqa.layers.built import built_coefficients
from nnabla_dqa.layers.tensors import AttentionWarning, QuantizedTensor, find_quantized
from nnabla_dqa.quantization.graph_ops import Variable, detach, lift

_PENALTIES = ("powers_of_4", "squared_bits")
_WEIGHTINGS = ("network", "layer", "none")
AUTO = "auto"
PULL = 0.02
"""Lambda of ``"auto"``, as a multiple of the number of weights."""
_FAR = 1e30


def regularizer(
    strength: Union[float, str],
    penalty: str = "powers_of_4",
    weighting: str = "network",
    budget: Optional[Union[int, str]] = None,
) -> Variable:
    """``strength * sum_l g^T a_l / S`` over the DQA layers of the current scope.

    DQA, arXiv 2103.13322, eq. 6, with ``g_k = 4^(k-1)`` (the paper's [1, 4, 16])
    and ``S`` the number of weights in the whole network: the elements of all
    parameters named ``W`` in the current scope, float layers included.

    Args:
        strength: lambda, not negative; the paper uses 1 to 30. ``"auto"``: ``0.02 S``, so that
            each layer's attention feels ``0.02 g^T a_l`` whatever the size of the network (with
            the paper's 5 a net of 9 thousand weights feels a thousand times more than ResNet-18's
            11 million); what ``train`` takes by default. Not from the paper.
        penalty: ``"powers_of_4"``, or ``"squared_bits"``: ``g_k = (bits_k / bits_1)^2``.
        weighting: ``"network"``: divide by S, as printed; ``"layer"``: multiply
            by the layer's part of the weights, M_l / S; ``"none"``: neither.
        budget: What the deployed network may weigh: bytes, or text such as ``"100kB"``. Counted
            is column ``packed`` of ``nnabla-dqa summary``: quantized weights and their ranges,
            and all other parameters as float32. Attention is then drawn to it by
            ``mu (B(a) / budget - 1)``, ``B(a)`` the size expected by attention, ``mu`` moved by
            the attached solver, and each layer ends on the quantizer that the budget chooses for
            it instead of its target (docs/method.md). ``strength`` then counts for quantized
            activations alone, which the budget does not choose for. It is state of the scope; a
            regularizer without one takes it away.

    It uses the coefficients that the layers' graphs compute, so it costs some ten
    functions for the whole network; where there are none (or in auto-forward mode) it
    computes them anew, with the same result. Of several graphs of one layer it takes the
    one built last, and rather one for training than one for evaluation (batch
    normalization by running statistics).

    Returns:
        A scalar variable of shape () to be added to the loss, computed in float32
        whatever the current context. Layers with one quantizer contribute their
        constant g_1.

    Warns:
        AttentionWarning: A layer's target costs more than another of its quantizers.

    Raises:
        ValueError: An argument is not allowed, or the current scope has no DQA
            layer (build the model first).
        BudgetError: The budget is no size or less than the least possible, or there
            is no attention that could follow it.


    Examples:
        >>> import nnabla as nn
        >>> import nnabla_dqa as dqa
        >>> import nnabla_dqa.parametric_functions as PF
        >>> with dqa.quantizers(*map(dqa.MinMax, (2, 4, 8)), mixing=dqa.Attention("uniform")):
        ...     y = PF.dqa_affine(nn.Variable((8, 64)), 10, name="fc")
        >>> penalty = dqa.regularizer(strength=640)
        >>> penalty.forward()
        >>> round(float(penalty.d), 3)  # 640 / 640 weights * (1 + 4 + 16) / 3
        7.0
    """
    if strength != AUTO and (not is_number(strength) or float(strength) < 0):
        raise ValueError(
            f"regularizer: strength={strength!r} is not a finite number >= 0, nor 'auto'"
        )
    if penalty not in _PENALTIES:
        raise ValueError(f"regularizer: penalty={penalty!r} is none of {', '.join(_PENALTIES)}")
    if weighting not in _WEIGHTINGS:
        raise ValueError(
            f"regularizer: weighting={weighting!r} is none of {', '.join(_WEIGHTINGS)}"
        )
    layers = find_quantized()
    if not layers:
        raise ValueError(
            "regularizer: the current parameter scope has no DQA layer; build the model first"
        )
    number = PULL * total_weights() if strength == AUTO else float(strength)
    scope = nn.parameter.get_current_parameter_scope()
    if budget is None:
        if budget_of(scope) is not None:
            forget_budget(scope)
        with in_float32():
            return _penalty(layers, number, penalty, weighting)
    set_budget(scope, byte_size(budget))
    with in_float32():
        drawn = pull(scope, *_sizes(scope, layers), _recorded())
        # The price says what bits of weights cost.
        entering = [layer for layer in layers if not layer.is_weight]
        if not number or not entering:
            return drawn
        return F.add2(_penalty(entering, number, penalty, weighting), drawn)


def _sizes(scope: Any, layers: List[QuantizedTensor]) -> Tuple[Variable, Variable]:
    """``B(a) / budget`` and ``B(e) / budget``, shape (): the parts of its budget a network takes.

    ``B(a) = sum_l (M_l sum_k a_lk bits_k / 8 + 8 C_l)``, and 4 bytes for each number that
    stays float32. The second is that of each layer's quantizer with the largest attention alone,
    without a gradient.
    """
    size = float(budget_of(scope) or 0)
    weights = [layer for layer in layers if layer.is_weight]
    constant = float(float_bytes(scope, weights))
    groups: Dict[Tuple[float, ...], List[Tuple[Variable, float]]] = {}
    for layer in weights:
        sizes, bits = bytes_of_choices(layer), [q.bits for q in layer.mixture.quantizers]
        # What bits do not explain is ranges, equal for all of a layer, and rounding to bytes.
        constant += sizes[0] - layer.weight.size * bits[0] / 8
        if layer.mixture.is_mixed:
            g = tuple(n / 8 for n in bits)
            groups.setdefault(g, []).append((_coefficients(layer), layer.weight.size / size))
        else:
            constant += layer.weight.size * bits[0] / 8
    heading = {g: [(_largest(a), part) for a, part in own] for g, own in groups.items()}
    soft, hard = (
        F.add_scalar(
            reduce(F.add2, [_penalised(g, own) for g, own in parts.items()]), constant / size
        )
        for parts in (groups, heading)
    )
    return soft, hard


def _largest(a: Variable) -> Variable:
    """One-hot where ``a`` of shape (1, K) is largest, equal parts of several; no gradient."""
    a = detach(a)
    gap = F.sub2(a, F.max(a, axis=1, keepdims=True))
    # 1 for a gap of 0, and 0 for any other that float32 has near the largest of K coefficients.
    # F.one_hot would not let a graph that was saved and loaded go backward.
    found = F.maximum_scalar(F.add_scalar(F.mul_scalar(gap, _FAR), 1.0), 0.0)
    return F.div2(found, F.sum(found, axis=1, keepdims=True))


def _penalty(
    layers: List[QuantizedTensor], strength: float, penalty: str, weighting: str
) -> Variable:
    total = total_weights()
    groups: Dict[Tuple[float, ...], List[Tuple[Variable, float]]] = {}
    constant = 0.0
    for layer in layers:
        factor = strength * _factor(layer, weighting, total)
        if layer.mixture.is_mixed:
            g = tuple(penalty_vector(layer, penalty))
            if g[layer.mixture.target] > min(g):
                warn(
                    f"layer {layer.name}: the penalty knows bit widths only and draws attention "
                    f"away from the target, {layer.mixture.target_quantizer}",
                    AttentionWarning,
                )
            groups.setdefault(g, []).append((_coefficients(layer), factor))
        else:
            constant += factor
    if not groups:
        return nn.Variable.from_numpy_array(np.array(constant, np.float32))
    terms = [_penalised(g, members) for g, members in groups.items()]
    return F.add_scalar(reduce(F.add2, terms), constant)


def _penalised(g: Sequence[float], members: List[Tuple[Variable, float]]) -> Variable:
    """``sum_l factor_l g^T a_l`` as a graph of shape (), for layers with the same g."""
    factors = {factor for _, factor in members}
    common = factors.pop() if len(factors) == 1 else 1.0
    rows = [a if factor == common else F.mul_scalar(a, factor) for a, factor in members]
    table = F.concatenate(*rows, axis=0) if len(rows) > 1 else rows[0]
    # Scaling slices, not multiplying by a vector: a constant array would become a parameter.
    columns = [
        F.mul_scalar(F.slice(table, start=(0, k), stop=(len(rows), k + 1)), common * cost)
        for k, cost in enumerate(g)
    ]
    return F.sum(F.concatenate(*columns, axis=1), axis=(0, 1))


class PenaltyValue:
    """The value of :func:`regularizer` with its defaults, for coefficients that are at hand.

    Args:
        strength: lambda.
    """

    def __init__(self, strength: float) -> None:
        layers = find_quantized()
        self._factor = strength / total_weights()
        mixed = [layer for layer in layers if layer.mixture.is_mixed]
        self._constant = float(len(layers) - len(mixed))
        self._costs = [np.array(penalty_vector(layer, _PENALTIES[0])) for layer in mixed]
        if budget_of(nn.parameter.get_current_parameter_scope()) is not None:
            # As in the regularizer: the weights have their price instead.
            entering = [not layer.is_weight for layer in mixed]
            self._costs = [g * counts for g, counts in zip(self._costs, entering)]
            self._constant = float(sum(not k.is_weight for k in layers) - sum(entering))

    def of(self, coefficients: Sequence[np.ndarray]) -> float:
        """The penalty.

        Args:
            coefficients: Shape (K,), of each layer in the scope that mixes quantizers.
        """
        rows = zip(self._costs, coefficients)
        return self._factor * (self._constant + sum(float(g @ a) for g, a in rows))


def total_weights() -> int:
    """The weights in the current scope: of DQA layers and in all parameters named ``W``."""
    layers = {layer.weight_name for layer in find_quantized()}
    parameters = nn.get_parameters(grad_only=False)
    return sum(
        v.size for name, v in parameters.items() if name.split("/")[-1] == "W" or name in layers
    )


def penalty_vector(layer: QuantizedTensor, penalty: str) -> List[float]:
    """``g`` for one layer; quantizers of equal bit width cost the same."""
    bits = [q.bits for q in layer.mixture.quantizers]
    if penalty == "squared_bits":
        return [(n / bits[0]) ** 2 for n in bits]
    widths = sorted(set(bits))
    return [4.0 ** widths.index(n) for n in bits]


def _factor(layer: QuantizedTensor, weighting: str, total: int) -> float:
    if weighting == "none":
        return 1.0
    return (layer.weight.size if weighting == "layer" else 1) / total


def _coefficients(layer: QuantizedTensor) -> Variable:
    """Those that the layer's own graph computes, or a graph of their own."""
    built = built_coefficients(layer)
    if built is not None:
        return built
    like = _recorded()
    state = {
        path: lift(v.get_unlinked_variable(need_grad=v.need_grad), like)
        for path, v in layer.state.items()
    }
    return layer.mixture.coefficients(state)


def _recorded() -> Optional[Variable]:
    """A variable of the graph definition that is being recorded, None if none is."""
    # It is one if something has been put into it.
    return nn.ProtoVariable((1,)) if current_graph_builder().is_dirty() else None
