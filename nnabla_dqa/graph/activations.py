"""Quantized activations of a live graph as standard functions with fixed ranges."""

from __future__ import annotations

import dataclasses
from typing import Any, Dict, List, Mapping, NamedTuple, Optional, Sequence, Tuple

import nnabla as nn
import nnabla.functions as F
import numpy as np

from nnabla_dqa._util.devices import in_float32
from nnabla_dqa.backends.portable import float_input
from nnabla_dqa.export.activation import DeployedActivation
from nnabla_dqa.export.quantizer_info import QuantizerInfo
from nnabla_dqa.graph.traverse import LiveGraph, again
from nnabla_dqa.layers.functions import CHANNEL_AXIS, WEIGHT_INPUT
from nnabla_dqa.layers.tensors import INPUT, QuantizedTensor
from nnabla_dqa.quantization import Grid, Quantizer, Statistics
from nnabla_dqa.quantization.base import quantized_form
from nnabla_dqa.quantization.graph_ops import Variable


@dataclasses.dataclass(frozen=True)
class Fixed:
    """The graph with fixed quantizers: its outputs, what was quantized, and the variables of it.

    ``factors`` are those of channels, by the names that they shall have as parameters.
    """

    outputs: Dict[str, Variable]
    tensors: Dict[str, DeployedActivation]
    variables: Dict[str, Variable]
    factors: Dict[str, Variable]


class Entering(NamedTuple):
    """What enters a function, quantized: whose it is, and the float variable."""

    tensor: QuantizedTensor
    x: Variable


def quantized_inputs(
    graph: LiveGraph, weights: Sequence[QuantizedTensor], activations: Sequence[QuantizedTensor]
) -> Dict[Any, Entering]:
    """The functions of a graph into which quantized activations go.

    Args:
        graph: The graph.
        weights: The quantized weights in it.
        activations: The quantized activations of a scope; a graph may be built without them.
    """
    by_layer = {layer.name[: -len(INPUT)]: layer for layer in activations}
    owners = {
        v: by_layer[layer.name]
        for layer in weights
        if layer.name in by_layer
        for v in graph.weights_of(layer)
    }
    layers = [
        function
        for function in graph.functions
        if function.info.type_name in CHANNEL_AXIS and len(function.inputs) > WEIGHT_INPUT
    ]
    quantized: Dict[Variable, Entering] = {}
    for function in layers:
        owner = owners.get(function.inputs[WEIGHT_INPUT])
        x = None if owner is None else float_input(function.inputs[0])
        if owner is not None and x is not None:
            quantized[function.inputs[0]] = Entering(owner, x)
    # Other layers may read the same.
    return {f: quantized[f.inputs[0]] for f in layers if f.inputs[0] in quantized}


def fix_activations(
    graph: LiveGraph,
    outputs: Mapping[str, Variable],
    entering: Mapping[Any, Entering],
    chosen: Mapping[str, int],
) -> Fixed:
    """The graph anew, with one quantizer of each mixture of activations by scalar functions.

    Args:
        graph: The graph above ``outputs``.
        outputs: Its outputs by name.
        entering: As of :func:`quantized_inputs`.
        chosen: The index of the quantizer of each tensor.

    Raises:
        ValueError: A range has seen no data, or a quantizer is made of functions that need
            more than one number; names the layer.
    """
    made: Dict[Variable, Variable] = {}
    tensors: Dict[str, DeployedActivation] = {}
    variables: Dict[str, Variable] = {}
    factors: Dict[str, Variable] = {}
    quantized: Dict[Tuple[str, Variable], Variable] = {}
    for function in graph.functions:
        inputs = [made.get(v, v) for v in function.inputs]
        if function in entering:
            owner, x = entering[function]
            index, key = chosen[owner.name], (owner.name, x)
            is_new = key not in quantized
            own: List[Variable] = []
            if is_new:
                quantized[key], scale, offset = _fixed(made.get(x, x), owner, index, own)
            inputs[0] = quantized[key]
            if is_new and not owner.mixture.quantizers[index].is_float:
                count = sum(other.layer == owner.name for other in tensors.values())
                name = owner.name[: -len(INPUT)] + "/input" + (f"_{count + 1}" if count else "")
                variables[name] = inputs[0]
                factors.update({f"{name}/factor": v for v in own})
                tensors[name] = _described(name, owner, index, inputs[0], scale, offset)
        elif not any(v in made for v in function.inputs):
            continue
        made.update(zip(function.outputs, again(function, inputs, "deploy")))
    fixed = {name: made.get(v, v) for name, v in outputs.items()}
    return Fixed(fixed, tensors, variables, factors)


def _described(
    name: str, layer: QuantizedTensor, index: int, x: Variable, scale: float, offset: float
) -> DeployedActivation:
    quantizer = layer.mixture.quantizers[index]
    return DeployedActivation(
        name,
        layer.name,
        layer.function,
        QuantizerInfo.of(quantizer),
        tuple(x.shape),
        scale,
        offset,
        tuple(float(a) for a in layer.attention()),
        layer.mixture.to_json(),
    )


def _fixed(
    x: Variable, layer: QuantizedTensor, index: int, factors: List[Variable]
) -> Tuple[Variable, float, float]:
    quantizer = layer.mixture.quantizers[index]
    layer.check_set(index)
    try:
        with in_float32(), nn.auto_forward(False):
            return fixed_quantizer(x, quantizer, layer.quantizer_state(index), factors)
    except ValueError as error:
        raise ValueError(f"deploy: layer {layer.name}: {error}") from None


def fixed_quantizer(
    x: Variable,
    quantizer: Quantizer,
    state: Mapping[str, np.ndarray],
    factors: Optional[List[Variable]] = None,
) -> Tuple[Variable, float, float]:
    """``Q(x)`` by functions of NNabla that work on each number alone, for any batch size.

    They are those of the quantizer's own graph in the same order, so the numbers are
    the same bit for bit.

    Args:
        x: Of any shape.
        quantizer: It has one range.
        state: Its arrays.
        factors: Where to add a variable with factors of channels; None: it may have none.

    Returns:
        Q(x), the scale and the offset.

    Raises:
        ValueError: The quantizer gives no even grid, or is made of other functions.
    """
    if quantizer.is_float:
        return x, 1.0, 0.0
    # Every number that is fixed is computed from the state alone, whatever stands here.
    rows = next(iter(state.values())).shape[0] if quantizer.rows_are_channels else 1
    row = nn.Variable.from_numpy_array(np.ones((rows, 2), np.float32), need_grad=False)
    own = {
        name: nn.Variable.from_numpy_array(np.array(state[name], np.float32), need_grad=False)
        for name in quantizer.state(1)
    }
    form = quantized_form(quantizer, Statistics(row, fixed=True), own)
    if not isinstance(form, Grid):
        raise ValueError(f"{quantizer} has no evenly spaced levels, which activations need")
    scale, offset = _number(form.scale), _number(form.offset)
    q = F.mul_scalar(_by_scalars(form.codes, {row: x}, quantizer, factors), scale)
    return (F.add_scalar(q, offset) if offset else q), scale, offset


def _by_scalars(
    v: Variable,
    made: Dict[Variable, Variable],
    quantizer: Quantizer,
    factors: Optional[List[Variable]],
) -> Variable:
    """``v`` by scalar functions; ``made`` has what is written already, each once."""
    if v not in made:
        made[v] = _written(v, made, quantizer, factors)
    return made[v]


def _written(
    v: Variable,
    made: Dict[Variable, Variable],
    quantizer: Quantizer,
    factors: Optional[List[Variable]],
) -> Variable:
    function = v.parent
    if function is not None:
        kind, inputs = function.info.type_name, function.inputs
        before = _by_scalars(inputs[0], made, quantizer, factors)
        if kind == "Reshape":
            return before
        if kind == "BatchMatmul" and inputs[1].size == 1:
            return F.mul_scalar(before, _number(inputs[1]))
        if kind == "BatchMatmul" and factors is not None and inputs[1].size == v.shape[0]:
            inputs[1].forward()
            of_channels = inputs[1].d.reshape(1, -1, *[1] * (before.ndim - 2))
            factors.append(nn.Variable.from_numpy_array(of_channels, need_grad=False))
            return F.mul2(before, factors[-1])
        if kind == "Affine" and inputs[1].size == 1 and _number(inputs[1]) == 1:
            return F.add_scalar(before, _number(inputs[2]))
        if kind == "AddN":
            return F.add_n(*[_by_scalars(u, made, quantizer, factors) for u in inputs])
        if len(inputs) == 1 and inputs[0].size == v.size:
            return again(function, [before], "deploy")[0]
    what = "a leaf" if function is None else function.info.type_name
    raise ValueError(
        f"{quantizer} cannot be written with fixed numbers: its codes need {what}; scale_rows, "
        f"shift_rows, sums and functions of one input can be"
    )


def _number(v: Variable) -> float:
    if v.parent is not None:
        v.forward()
    values: List[float] = v.d.ravel().tolist()
    return values[0]
