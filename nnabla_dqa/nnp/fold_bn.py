"""Folding batch normalization into the layer before it, in a network definition."""

from __future__ import annotations

from typing import Any, Callable, Dict, List, Mapping, NamedTuple, Optional, Set

import numpy as np

from nnabla_dqa.export.deployed import Deployed
from nnabla_dqa.layers.functions import CHANNEL_AXIS, WEIGHT_INPUT
from nnabla_dqa.nnp.live import NORMALIZATION
from nnabla_dqa.nnp_format.archive import keep_only
from nnabla_dqa.nnp_format.parameters import Parameter

_BIAS_INPUT = 2


class Fold(NamedTuple):
    """A normalization that became part of a layer: ``W' = gain * W`` and ``b' = shift + gain * b``.

    ``gain`` and ``shift`` are float32 of shape (channels,); the channels lie
    on ``channel_axis`` of the weights.
    """

    weight: str
    channel_axis: int
    gain: np.ndarray
    shift: np.ndarray
    normalization: str


def fold_deployed(deployed: Deployed, messages: List[str]) -> None:
    """Fold what batch normalization can be folded, in place; levels follow the weights.

    Args:
        deployed: With one network; with several, nothing is folded.
        messages: Gets a line that names what was folded.
    """
    if len(deployed.networks) > 1:
        messages.append("no batch normalization folded: several networks share the weights")
        return
    network = deployed.definition.network[0]
    outputs = {v.variable_name for e in deployed.definition.executor for v in e.output_variable}
    used = {name for function in network.function for name in function.input}
    outputs |= {n for f in network.function for n in f.output if n not in used}

    def fits(weight: str, channel_axis: int) -> bool:
        # Levels can differ along one axis only.
        tensor = deployed.tensors.get(weight)
        return tensor is None or tensor.channel_axis in (None, channel_axis)

    before = set(deployed.parameters)
    folds = fold_normalization(network, deployed.parameters, outputs, fits)
    for fold in folds:
        weights, need_grad = deployed.parameters[fold.weight]
        tensor = deployed.tensors.get(fold.weight)
        if tensor is not None:
            tensor = tensor.scaled(fold.gain, fold.channel_axis)
            deployed.tensors[fold.weight] = tensor
            weights = tensor.array
        else:
            shape = [1] * weights.ndim
            shape[fold.channel_axis] = fold.gain.size
            weights = weights * fold.gain.reshape(shape)
        deployed.parameters[fold.weight] = Parameter(weights, need_grad)
    for name in [name for name in deployed.parameters if name not in before]:
        for executor in deployed.definition.executor:
            if executor.parameter_variable:
                executor.parameter_variable.add(variable_name=name)
    listed = ", ".join(f"{fold.normalization} into {fold.weight}" for fold in folds)
    messages.append(f"folded: {listed}" if folds else "no batch normalization could be folded")


def fold_normalization(
    network: Any,
    parameters: Dict[str, Parameter],
    keep: Set[str],
    fits: Callable[[str, int], bool],
) -> List[Fold]:
    """Take normalizations by running statistics out of ``network``, in place.

    ``gain = gamma / sqrt(var + eps)`` and ``shift = beta - gain * mean``.
    A normalization is folded if it alone uses the output of an Affine,
    (depthwise) Convolution or (depthwise) Deconvolution whose weights and bias
    nothing else uses. Biases are changed or added in ``parameters``; scaling
    the weights is left to the caller, who knows their grid.

    Args:
        network: NNabla's ``Network``.
        parameters: By name; of this network alone.
        keep: Variables that must stay: the network's outputs.
        fits: Whether weights of this name can be scaled along this axis.

    Returns:
        What was folded.
    """
    users: Dict[str, List[Any]] = {}
    for function in network.function:
        for name in function.input:
            users.setdefault(name, []).append(function)
    folds = []
    gone: Set[str] = set()
    moves = []
    for layer in network.function:
        fold = _fold(layer, users, parameters, keep)
        if fold is None or not fits(fold.weight, fold.channel_axis):
            continue
        normalization = users[layer.output[0]][0]
        _add_bias(network, layer, fold, parameters)
        # By what they compute: names of functions need not differ from those of variables.
        gone.add(layer.output[0])
        moves.append((layer, normalization.output[0]))
        folds.append(fold)
    for layer, output in moves:
        layer.output[0] = output
    keep_only(network.function, lambda function: not gone.intersection(function.input))
    keep_only(network.variable, lambda variable: variable.name not in gone)
    return folds


def _fold(
    layer: Any, users: Mapping[str, List[Any]], parameters: Mapping[str, Parameter], keep: Set[str]
) -> Optional[Fold]:
    if layer.type not in CHANNEL_AXIS or layer.type == "Embed" or layer.output[0] in keep:
        return None
    following = users.get(layer.output[0], [])
    if len(following) != 1 or following[0].type != "BatchNormalization":
        return None
    own = list(layer.input[WEIGHT_INPUT:])
    if any(name not in parameters or len(users[name]) > 1 for name in own):
        return None
    normalization = following[0]
    arguments = getattr(normalization, NORMALIZATION[normalization.type])
    statistics = list(normalization.input[1:])
    if arguments.batch_stat or len(statistics) != 4:
        return None
    if any(name not in parameters for name in statistics):
        return None
    axis = _weight_axis(layer, parameters[own[0]].array.ndim)
    if axis is None or list(arguments.axes) != [_output_axis(layer)]:
        return None
    beta, gamma, mean, var = (parameters[n].array.astype(np.float64).ravel() for n in statistics)
    if gamma.size != parameters[own[0]].array.shape[axis]:
        return None
    gain = gamma / np.sqrt(var + arguments.eps)
    shift = beta - gain * mean
    return Fold(own[0], axis, gain.astype(np.float32), shift.astype(np.float32), normalization.name)


def _weight_axis(layer: Any, ndim: int) -> Optional[int]:
    """The axis of the weights with the output channels; None where groups mix them."""
    if layer.type == "Affine":
        return 1 if ndim == 2 else None
    if layer.type == "Deconvolution":
        arguments = layer.deconvolution_param
        return 1 if arguments.group == 1 and not arguments.channel_last else None
    if layer.type == "DepthwiseDeconvolution":
        return 0 if layer.depthwise_deconvolution_param.divisor in (0, 1) else None
    if layer.type == "Convolution" and layer.convolution_param.channel_last:
        return None
    return 0


def _output_axis(layer: Any) -> int:
    fields = {
        "Affine": "affine_param",
        "Convolution": "convolution_param",
        "Deconvolution": "deconvolution_param",
        "DepthwiseConvolution": "depthwise_convolution_param",
        "DepthwiseDeconvolution": "depthwise_deconvolution_param",
    }
    return int(getattr(layer, fields[layer.type]).base_axis)


def _add_bias(network: Any, layer: Any, fold: Fold, parameters: Dict[str, Parameter]) -> None:
    if len(layer.input) > _BIAS_INPUT:
        name = layer.input[_BIAS_INPUT]
        old = parameters[name].array.astype(np.float64)
        bias = fold.shift + fold.gain.astype(np.float64) * old.ravel()
        parameters[name] = Parameter(bias.astype(np.float32).reshape(old.shape))
        return
    stem = fold.weight[:-1] if fold.weight.endswith("/W") else f"{fold.weight}."
    name = f"{stem}b"
    taken = {variable.name for variable in network.variable} | set(parameters)
    while name in taken:
        name += "_"
    parameters[name] = Parameter(fold.shift.copy())
    layer.input.append(name)
    variable = network.variable.add(name=name, type="Parameter")
    variable.shape.dim.append(fold.shift.size)
