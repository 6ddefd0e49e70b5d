"""What enters the layers of a deployed file, quantized by functions with fixed ranges."""

from __future__ import annotations

from typing import Any, Dict, List, Set, Tuple

import nnabla as nn
from nnabla.utils import nnabla_pb2

from nnabla_dqa.export.activation import DeployedActivation
from nnabla_dqa.export.deployed import Deployed
from nnabla_dqa.export.quantizer_info import QuantizerInfo
from nnabla_dqa.graph.activations import fixed_quantizer
from nnabla_dqa.layers.functions import CHANNEL_AXIS, WEIGHT_INPUT
from nnabla_dqa.layers.report import LayerReport
from nnabla_dqa.nnp.file import NetworkFile
from nnabla_dqa.nnp.layers import FileLayer
from nnabla_dqa.nnp_format.members import NNPError
from nnabla_dqa.quantization.base import check_ready

_BATCH = 2


def fix_activations(
    file: NetworkFile, layer: FileLayer, row: LayerReport, index: int, deployed: Deployed
) -> None:
    """Quantize what enters the functions of a layer in all networks of ``deployed``.

    Layers that share its quantizers read the same from then on.

    Args:
        file: Where the state is.
        layer: Its activations are quantized.
        row: A report of them.
        index: The quantizer to use.
        deployed: Changed: its networks and its ``activations``.

    Raises:
        NNPError: The quantizer has seen no data; names the layer.
    """
    mixture = file.assigned[layer.name].activations
    assert mixture is not None
    quantizer = mixture.quantizers[index]
    state = mixture.quantizer_states(file.activation_state(layer))
    own = state[index] if state else {}
    try:
        check_ready(quantizer, own)
        with nn.context_scope(nn.Context(["cpu:float"])), nn.auto_forward(False):
            x = nn.Variable((_BATCH, 1))
            q, scale, offset = fixed_quantizer(x, quantizer, own)
    except ValueError as error:
        raise NNPError(f"{file.archive.path}: layer {row.name}: {error}") from None
    chain = [] if quantizer.is_float else _functions(x, q)
    weights = {other.weight for other in file.quantized if file.input_owner(other) == layer}
    for network in deployed.definition.network:
        for name, shape in _insert(network, layer.name, weights, chain):
            deployed.activations[name] = DeployedActivation(
                name,
                row.name,
                layer.function,
                QuantizerInfo.of(quantizer),
                shape,
                scale,
                offset,
                row.attention,
                mixture.to_json(),
            )


def _functions(x: Any, q: Any) -> List[Any]:
    """The functions from ``x`` to ``q``, each behind those that it needs."""
    graph = nn.graph_def.create_graph_from_variable("chain", [q], names={"x": x, "q": q})
    return list(graph.as_proto(variable_batch_size=False).network[0].function)


def _insert(
    network: Any, layer: str, weights: Set[str], chain: List[Any]
) -> List[Tuple[str, Tuple[int, ...]]]:
    """Put the chain before each function of these weights; names and shapes of what it gives."""
    variables = {v.name: v for v in network.variable}
    made: Dict[str, str] = {}
    functions: List[Any] = []
    found = []
    for function in network.function:
        weight = function.input[WEIGHT_INPUT] if len(function.input) > WEIGHT_INPUT else ""
        if function.type in CHANNEL_AXIS and weight in weights:
            x = function.input[0]
            if x not in made:
                number = f"_{len(made) + 1}" if made else ""
                made[x] = f"{layer}/input{number}"
                steps = _renamed(chain, x, made[x])
                for step in steps:
                    # Within a loop it is one for each turn, as what it is computed from.
                    step.repeat_id[:] = function.repeat_id
                    added = network.variable.add()
                    added.CopyFrom(variables[x])
                    added.name, added.type = step.output[0], "Buffer"
                functions += steps
                if chain:
                    found.append((made[x], tuple(variables[x].shape.dim)))
            function.input[0] = made[x] if chain else x
        functions.append(function)
    copies = [nnabla_pb2.Function.FromString(f.SerializeToString()) for f in functions]
    del network.function[:]
    network.function.extend(copies)
    return found


def _renamed(chain: List[Any], x: str, name: str) -> List[Any]:
    """The chain from the variable ``x`` to the variable ``name``."""
    made = []
    names = {"x": x}
    for i, function in enumerate(chain):
        copy = nnabla_pb2.Function()
        copy.CopyFrom(function)
        copy.name = f"{name}/{function.type}_{i + 1}"
        copy.input[:] = [names[own] for own in function.input]
        output = name if i == len(chain) - 1 else f"{name}/{i + 1}"
        names[function.output[0]] = output
        copy.output[:] = [output]
        made.append(copy)
    return made
