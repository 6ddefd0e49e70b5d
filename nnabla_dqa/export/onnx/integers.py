"""Which layers of a network with quantized activations can be computed on integers.

A layer that takes activations ``x = sx (qx - zx) + rx`` and weights ``w = s (c - z) + r`` with
integer codes gives

    y = sx s sum (qx - zx) (c - z) + sx r sum (qx - zx) + rx sum w + b

The first two sums are whole numbers, which engines compute exactly and fast; the second one is that
of the layer with weights of ones, and is needed only where the levels of the weights are no whole
multiples of their step (``r`` is not 0, as with min-max grids). The third does not depend on the
input: a constant for each output, or for each position of it where a convolution pads.
"""

from __future__ import annotations

import dataclasses
from typing import Any, Dict, List, Mapping, Optional, Set, Tuple

import numpy as np

from nnabla_dqa.export.activation import DeployedActivation
from nnabla_dqa.export.deployed import Deployed
from nnabla_dqa.export.network import Call, Network, needed
from nnabla_dqa.export.tensor import DeployedTensor

QUANTIZE, INTEGER = "nnabla_dqa.Quantize", "nnabla_dqa.IntegerLayer"
"""Calls of a rewritten network that are no functions of NNabla."""
_BYTE = 255
_LAYERS = ("Affine", "Convolution", "DepthwiseConvolution")
_CLOSE = 1e-5
"""How near numbers that are computed in float32 must be to what they stand for."""


@dataclasses.dataclass(frozen=True)
class Activation:
    """What enters layers as bytes: ``x = scale (q - zero) + rest``, ``q`` from 0 to ``largest``."""

    source: str
    scale: float
    zero: int
    rest: float
    largest: int

    @property
    def low(self) -> float:
        """The smallest value, without ``rest``."""
        return -self.scale * self.zero

    @property
    def high(self) -> float:
        """The largest value, without ``rest``."""
        return self.scale * (self.largest - self.zero)


@dataclasses.dataclass(frozen=True)
class Rewritten:
    """A network in which some layers are computed on integers.

    Attributes:
        network: With calls of the types :data:`QUANTIZE` and :data:`INTEGER`.
        activations: What is quantized, by the name of the variable.
        messages: Which layers stay in float32 although their activations are quantized.
    """

    network: Network
    activations: Mapping[str, Activation]
    messages: Tuple[str, ...]


def on_integers(network: Network, deployed: Deployed) -> Rewritten:
    """The network with what can be computed on integers as calls of its own.

    Batch normalization that alone follows such a layer becomes part of it.
    """
    made = {name: call for call in network.calls for name in call.outputs}
    found: Dict[str, Activation] = {}
    messages: List[str] = []
    for name, stated in deployed.activations.items():
        if name in made:
            reason = _read(stated, made, found)
            if reason:
                messages.append(f"{stated.layer} stays in float32: {reason}")
    entered: Dict[str, Activation] = {}
    layers: Set[str] = set()
    for call in network.calls:
        if call.type in _LAYERS and call.inputs[0] in found:
            reason = _not_integer(network, deployed, call)
            if reason:
                tensor = deployed.tensors.get(call.inputs[1])
                layer = call.name if tensor is None else tensor.layer
                messages.append(f"{layer} stays in float32: {reason}")
            else:
                layers.add(call.name)
                entered[call.inputs[0]] = found[call.inputs[0]]
    calls = needed(_replaced(network, entered, layers), network.outputs)
    return Rewritten(dataclasses.replace(network, calls=calls), entered, tuple(messages))


def _replaced(network: Network, entered: Mapping[str, Activation], layers: Set[str]) -> List[Call]:
    uses = uses_of(network)
    calls: List[Call] = []
    merged: Set[str] = set()
    for call in network.calls:
        if call.name in merged:
            continue
        activation = entered.get(call.outputs[0])
        if activation is not None:
            calls.append(Call(call.name, QUANTIZE, {}, (activation.source,), call.outputs))
        elif call.name in layers:
            following = uses.get(call.outputs[0], [])
            after = following[0] if len(following) == 1 else None
            if after is not None and _normalizes(network, after, call):
                merged.add(after.name)
            else:
                after = None
            calls.append(_integer_call(call, after))
        else:
            calls.append(call)
    return calls


@dataclasses.dataclass(frozen=True)
class IntegerWeights:
    """Weights as ``w = step (multiple * code - zero) + rest``.

    ``step`` and ``rest`` have one number for each channel, or one for all.
    ``multiple`` is 2 where zero lies in the middle between two levels, as of BWN.
    """

    multiple: int
    zero: int
    step: np.ndarray
    rest: np.ndarray

    @classmethod
    def of(cls, tensor: DeployedTensor) -> IntegerWeights:
        """The form in which ``rest`` is 0, or smallest."""
        once = cls._of(tensor, 1)
        if once.rest.any() and 2 * (tensor.quantizer.levels - 1) < _BYTE:
            twice = cls._of(tensor, 2)
            if not twice.rest.any():
                return twice
        return once

    @classmethod
    def _of(cls, tensor: DeployedTensor, multiple: int) -> IntegerWeights:
        assert tensor.scale is not None
        assert tensor.offset is not None
        step = tensor.scale.astype(np.float64).ravel() / multiple
        offset = tensor.offset.astype(np.float64).ravel()
        safe = np.where(step == 0, 1.0, step)
        # The sums with ones have the code zero + 1, which has to fit into a byte as well.
        zero = int(np.clip(np.rint(np.median(-offset / safe)), 0, _BYTE - 1))
        rest = offset + step * zero
        # An offset that is a whole number of steps is so but for its own rounding to float32.
        rest[np.abs(rest) <= np.finfo(np.float32).eps * np.abs(offset)] = 0.0
        return cls(multiple, zero, step, rest)


def _read(
    stated: DeployedActivation, made: Mapping[str, Call], found: Dict[str, Activation]
) -> str:
    """Put an activation into ``found``; why it cannot be, or ''."""
    chain = _chain(stated.name, made)
    if chain is None:
        return f"{stated.quantizer.name} is made of functions that no QuantizeLinear stands for"
    source, factor, shift = chain
    if stated.quantizer.levels > _BYTE + 1:
        return "it has more than 8 bits"
    first = -stated.offset / stated.scale
    if abs(factor * stated.scale - 1) > _CLOSE or abs(shift - first) > _CLOSE * max(1, abs(first)):
        return "its rounding is not that of its levels"
    zero = int(np.clip(round(first), 0, _BYTE))
    rest = stated.offset + stated.scale * zero
    if abs(rest) <= np.finfo(np.float32).eps * abs(stated.offset):
        rest = 0.0
    scale = float(np.float32(stated.scale))
    found[stated.name] = Activation(source, scale, zero, rest, stated.quantizer.levels - 1)
    return ""


def _chain(name: str, made: Mapping[str, Call]) -> Optional[Tuple[str, float, float]]:
    """Where the functions of a quantizer begin, and ``a`` and ``b`` of ``code = round(a x + b)``.

    They are, in this order: sums and products, a clip, a product, rounding, a
    sum, and what makes levels of the codes.
    """
    steps: List[Call] = []
    at = name
    while at in made and made[at].type in _STEPS and len(steps) < _LONGEST:
        steps.append(made[at])
        at = made[at].inputs[0]
    kinds = [step.type for step in steps]
    if "Round" not in kinds:
        return None
    rounding = kinds.index("Round")
    after, before = steps[:rounding], steps[rounding + 1 :]
    clips = [i for i, step in enumerate(before) if step.type in ("MaximumScalar", "MinimumScalar")]
    if len(clips) < 2 or clips[1] != clips[0] + 1 or len(before) < clips[1] + 2:
        return None
    begin = clips[1] + 1
    if before[begin].type != "MulScalar":
        return None
    end = begin + 1
    if len(before) > end and before[end].type == "AddScalar":
        end += 1
    # All that stands before rounding is linear but for the clip.
    linear = [*before[: clips[0]], *before[begin:end]]
    factor, shift = 1.0, 0.0
    for step in reversed(linear):
        value = float(step.arguments["val"])
        if step.type == "MulScalar":
            factor, shift = factor * value, shift * value
        else:
            shift += value
    # Behind rounding: a sum that makes codes from 0 on, if there is one before the last product.
    products = [i for i, step in enumerate(after) if step.type == "MulScalar"]
    sums = [step for step in after if step.type == "AddScalar"]
    if len(products) != 1 or len(sums) + 1 != len(after):
        return None
    shift += sum(float(step.arguments["val"]) for step in after[products[0] + 1 :])
    return before[end - 1].inputs[0], factor, shift


_STEPS = ("AddScalar", "MaximumScalar", "MinimumScalar", "MulScalar", "Round")
_LONGEST = 10


def _not_integer(network: Network, deployed: Deployed, call: Call) -> str:
    """Why a layer whose input is quantized cannot be computed on integers; '' if it can."""
    tensor = deployed.tensors.get(call.inputs[1])
    if tensor is None or tensor.quantizer.is_float:
        return "its weights are float"
    if tensor.levels is not None or tensor.scale is None:
        return "the levels of its weights are unevenly spaced"
    if tensor.quantizer.levels > _BYTE + 1:
        return "its weights have more than 8 bits"
    shape, out = tensor.shape, network.shapes[call.outputs[0]]
    if call.type == "Affine":
        axis = tensor.channel_axis
        if len(shape) != 2 or len(out) != 2 or axis not in (None, 1):
            return "its weights are no matrix with ranges for each output"
        return ""
    if call.arguments["base_axis"] != 1 or len(shape) - 2 + (call.type[0] == "D") not in (1, 2):
        return "it is no convolution over images"
    if tensor.channel_axis not in (None, 0):
        return "its ranges are not those of output channels"
    group = call.arguments.get("group", 1)
    is_grouped = group > 1 or call.type == "DepthwiseConvolution"
    if is_grouped and IntegerWeights.of(tensor).rest.any():
        return "it is grouped, and the levels of its weights are no multiples of their step"
    if call.arguments.get("channel_last"):
        return "it has channels last"
    return ""


def _normalizes(network: Network, call: Call, layer: Call) -> bool:
    """Whether it is batch normalization of the layer's channels by running statistics."""
    arguments = call.arguments
    if call.type != "BatchNormalization" or arguments.get("batch_stat"):
        return False
    if call.inputs[0] != layer.outputs[0] or layer.outputs[0] in network.outputs:
        return False
    rank = len(network.shapes[call.inputs[0]])
    fixed = all(name in network.arrays for name in call.inputs[1:])
    return fixed and [axis % rank for axis in arguments["axes"]] == [1]


def _integer_call(layer: Call, after: Optional[Call]) -> Call:
    arguments = {"layer": layer, "normalization": after}
    inputs = layer.inputs if after is None else (*layer.inputs, *after.inputs[1:])
    outputs = layer.outputs if after is None else after.outputs
    return Call(layer.name, INTEGER, arguments, inputs, outputs)


def uses_of(network: Network) -> Dict[str, List[Call]]:
    """The calls that take each variable."""
    uses: Dict[str, List[Call]] = {}
    for call in network.calls:
        for name in call.inputs:
            uses.setdefault(name, []).append(call)
    return uses


def normalization_gains(
    network: Network, call: Optional[Call], channels: int
) -> Tuple[np.ndarray, np.ndarray]:
    """What batch normalization multiplies by and adds, for each channel; 1 and 0 without one."""
    if call is None:
        return np.ones(channels), np.zeros(channels)
    arrays: List[Any] = [network.arrays[n].astype(np.float64).ravel() for n in call.inputs[1:]]
    beta = np.zeros(channels) if call.arguments.get("no_bias") else arrays.pop(0)
    gamma = np.ones(channels) if call.arguments.get("no_scale") else arrays.pop(0)
    mean, variance = arrays[:2]
    gain = gamma / np.sqrt(variance + float(call.arguments["eps"]))
    return gain, beta - mean * gain
