"""The part of a network definition that computes weights from their packed codes."""

from __future__ import annotations

from typing import Any, Dict, List, Mapping, NamedTuple, Tuple

import nnabla as nn
import nnabla.functions as F
import numpy as np
from nnabla.utils import nnabla_pb2

from nnabla_dqa.export.packed.codes import Form, unpack
from nnabla_dqa.export.tensor import DeployedTensor
from nnabla_dqa.quantization.graph_ops import Variable

FLOAT32 = nn.Context(["cpu:float"], array_class="CpuCachedArray", device_id="0")


class Placed(NamedTuple):
    """Tensors whose codes are one parameter, ``<scope>/codes``, one after the other."""

    scope: str
    form: Form
    tensors: Tuple[DeployedTensor, ...]


def constants(placed: Placed) -> Dict[str, np.ndarray]:
    """Scales and offsets of tensors with several, by the names of their parameters."""
    found: Dict[str, np.ndarray] = {}
    for i, tensor in enumerate(placed.tensors):
        assert tensor.scale is not None
        assert tensor.offset is not None
        if tensor.groups > 1:
            found[f"{placed.scope}/scale_{i}"] = tensor.scale.astype(np.float32)
            found[f"{placed.scope}/offset_{i}"] = tensor.offset.astype(np.float32)
    return found


def unpacked(placed: Placed, numbers: np.ndarray) -> List[np.ndarray]:
    """What NNabla unpacks from the parameter, in the current context."""
    given = {f"{placed.scope}/codes": numbers, **constants(placed)}
    inputs = {name: nn.Variable.from_numpy_array(array) for name, array in given.items()}
    with nn.auto_forward(False):
        weights = _graph(placed, inputs)
        nn.forward_all(weights)
    return [w.d.copy() for w in weights]


def functions(placed: Placed) -> Any:
    """The functions, and the variables between them, as NNabla's ``Network``."""
    count = sum(tensor.weights for tensor in placed.tensors)
    shapes: Dict[str, Tuple[int, ...]] = {f"{placed.scope}/codes": (placed.form.numbers(count),)}
    shapes.update({name: array.shape for name, array in constants(placed).items()})
    inputs = {name: nn.Variable(shape) for name, shape in shapes.items()}
    with nn.context_scope(FLOAT32), nn.auto_forward(False):
        weights = _graph(placed, inputs)
        plain = {f"i{i}": variable for i, variable in enumerate(inputs.values())}
        plain.update({f"w{i}": variable for i, variable in enumerate(weights)})
        graph = nn.graph_def.create_graph_from_variable(
            "unpack", weights, names=plain, parameter_scope=None
        )
        network = graph.as_proto(variable_batch_size=False).network[0]
    names = {f"i{i}": name for i, name in enumerate(inputs)}
    names.update({f"w{i}": tensor.name for i, tensor in enumerate(placed.tensors)})
    for function in network.function:
        for output in function.output:
            names.setdefault(output, f"{placed.scope}/{len(names)}")
    part = nnabla_pb2.Network()
    for v in network.variable:
        added = part.variable.add()
        added.CopyFrom(v)
        added.name = names[v.name]
        added.type = "Parameter" if added.name in inputs else "Buffer"
    for i, function in enumerate(network.function):
        added = part.function.add()
        added.CopyFrom(function)
        added.name = f"{placed.scope}/f{i}"
        added.input[:] = [names[name] for name in function.input]
        added.output[:] = [names[name] for name in function.output]
    return part


def _graph(placed: Placed, inputs: Mapping[str, Variable]) -> List[Variable]:
    """The weights of each tensor."""
    total = sum(tensor.weights for tensor in placed.tensors)
    codes = unpack(inputs[f"{placed.scope}/codes"], placed.form, total)
    found, start = [], 0
    for i, tensor in enumerate(placed.tensors):
        own = F.slice(codes, [start], [start + tensor.weights], [1])
        own = F.reshape(own, tensor.shape)
        start += tensor.weights
        assert tensor.scale is not None
        assert tensor.offset is not None
        if tensor.groups > 1:
            own = F.mul2(own, inputs[f"{placed.scope}/scale_{i}"])
            own = F.add2(own, inputs[f"{placed.scope}/offset_{i}"])
        else:
            own = F.mul_scalar(own, float(tensor.scale.ravel()[0]))
            own = F.add_scalar(own, float(tensor.offset.ravel()[0]))
        found.append(own)
    return found
