"""Finding the layers of a network definition: what has weights that can be quantized."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, Dict, FrozenSet, List, Mapping, NamedTuple, Set, Tuple

from nnabla_dqa.layers.functions import CHANNEL_AXIS, WEIGHT_INPUT, channel_axis
from nnabla_dqa.layers.tensors import layer_name
from nnabla_dqa.nnp_format.parameters import Parameter


class Use(NamedTuple):
    """A function that uses weights."""

    network: str
    function: str
    type: str


class Skipped(NamedTuple):
    """A function with weights that stay as they are, and why."""

    network: str
    function: str
    type: str
    reason: str

    def __str__(self) -> str:
        return f"{self.function} ({self.type}, network {self.network}): {self.reason}"


@dataclasses.dataclass(frozen=True)
class FileLayer:
    """Weights that can be quantized, with all functions of all networks that use them.

    ``reads_input``: what enters one of these functions is a network's own input, in which
    no parameter that is trained has had a part yet. ``reads``: the variables that enter them,
    by network, and the loops that each of the functions is in.
    """

    weight: str
    shape: Tuple[int, ...]
    channel_axis: int
    uses: Tuple[Use, ...]
    reads_input: bool = False
    reads: FrozenSet[Tuple[str, str, Tuple[str, ...]]] = frozenset()

    @property
    def name(self) -> str:
        """The weights' name without ``/W``."""
        return layer_name(self.weight)

    @property
    def names(self) -> Tuple[str, ...]:
        """What rules may call the layer: itself, its weights, the functions that use them."""
        return (self.name, self.weight, *dict.fromkeys(use.function for use in self.uses))

    @property
    def size(self) -> int:
        """The number of weights."""
        return math.prod(self.shape)

    @property
    def function(self) -> str:
        """The type of the function that uses the weights; several are joined by ``+``."""
        return "+".join(dict.fromkeys(use.type for use in self.uses))


def discover(
    definition: Any, parameters: Mapping[str, Parameter]
) -> Tuple[List[FileLayer], List[Skipped]]:
    """The layers of all networks in the order in which they appear, and what is left alone.

    Weights used by several functions or networks are one layer. A parameter
    that anything else uses too is not a layer: quantized and as it is, it
    would have to be two.
    """
    uses: Dict[str, List[Use]] = {}
    axes: Dict[str, Set[int]] = {}
    skipped: List[Skipped] = []
    otherwise: Dict[str, str] = {}
    reading: Set[str] = set()
    reads: Dict[str, Set[Tuple[str, str, Tuple[str, ...]]]] = {}
    for network in definition.network:
        looped = {v.name for v in network.variable if v.repeat_id}
        learned: Set[str] = set()
        for function in network.function:
            use = Use(network.name, function.name, function.type)
            weight = _weight(function)
            for i, name in enumerate(function.input):
                if name in parameters and not (weight and i == WEIGHT_INPUT):
                    otherwise.setdefault(name, function.name)
            if not weight:
                skipped += _left(use, function, parameters)
            elif weight not in parameters:
                reason = f"its weights are not a parameter but the variable {weight!r}"
                skipped.append(Skipped(*use, reason))
            elif weight in looped:
                skipped.append(Skipped(*use, "its weights differ at each turn of a loop"))
            else:
                uses.setdefault(weight, []).append(use)
                axes.setdefault(weight, set()).add(_channel_axis(function))
                entering = (network.name, function.input[0], tuple(function.repeat_id))
                reads.setdefault(weight, set()).add(entering)
                if function.input[0] not in learned:
                    reading.add(weight)
            if any(name in learned or _is_learned(name, parameters) for name in function.input):
                learned.update(function.output)
    layers = []
    for weight, users in uses.items():
        shape = parameters[weight].array.shape
        reason = _refused(weight, shape, axes[weight], otherwise)
        if reason:
            skipped += [Skipped(*use, reason) for use in users]
            continue
        axis, is_first, read = min(axes[weight]), weight in reading, frozenset(reads[weight])
        layers.append(FileLayer(weight, shape, axis, tuple(users), is_first, read))
    return layers, skipped


def _is_learned(name: str, parameters: Mapping[str, Parameter]) -> bool:
    return name in parameters and parameters[name].need_grad


def _refused(
    weight: str, shape: Tuple[int, ...], axes: Set[int], otherwise: Mapping[str, str]
) -> str:
    if weight in otherwise:
        return f"its weights {weight} are also an input of function {otherwise[weight]}"
    if len({axis % len(shape) for axis in axes} if shape else ()) > 1:
        return f"its weights {weight} are shared by functions with different output channels"
    if not shape or math.prod(shape) == 0:
        return f"its weights {weight} have shape {shape}"
    return ""


def _weight(function: Any) -> str:
    if function.type in CHANNEL_AXIS and len(function.input) > WEIGHT_INPUT:
        return str(function.input[WEIGHT_INPUT])
    return ""


def _channel_axis(function: Any) -> int:
    return channel_axis(function.type, function.deconvolution_param.channel_last)


def _left(use: Use, function: Any, parameters: Mapping[str, Parameter]) -> List[Skipped]:
    for name in function.input:
        # Vectors are biases, scales, statistics; what has two axes may well be weights.
        shape = parameters[name].array.shape if name in parameters else ()
        if sum(size > 1 for size in shape) > 1:
            reason = f"{use.type} is not a layer that is rewritten (parameter {name}, {shape})"
            return [Skipped(*use, reason)]
    return []
