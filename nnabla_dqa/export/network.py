"""The network of a deployed result as calls of functions, with shapes that leave the batch open."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections import OrderedDict
from typing import Any, Dict, List, Mapping, Optional, Sequence, Set, Tuple

import nnabla as nn
import numpy as np
from nnabla.utils import nnabla_pb2

from nnabla_dqa._util.messages import one_line
from nnabla_dqa.export.deployed import Deployed
from nnabla_dqa.export.errors import ExportError

Shape = Tuple[int, ...]
OPEN = -1
"""In a shape: an axis whose size goes with the batch."""
NO_INDEX = 0x7FFFFFFF
"""NNabla's number for an index of a Slice that is left out."""
_WHOLE = frozenset(itertools.product((0, NO_INDEX), (NO_INDEX,), (1, NO_INDEX)))
"""Start, stop and step that take all of an axis, however long it is."""


@dataclasses.dataclass(frozen=True)
class Call:
    """A function of the network with the names of its variables."""

    name: str
    type: str
    arguments: Mapping[str, Any]
    inputs: Tuple[str, ...]
    outputs: Tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Network:
    """What is run: its calls in order, without loops.

    Attributes:
        name: Of the network.
        calls: The functions that the outputs need.
        inputs, outputs: Names of variables.
        shapes: Of all variables and parameters; :data:`OPEN` where an axis goes
            with the batch.
        arrays: The values of the parameters.
        fixed_batch: Why no axis is open where NNabla might have left the
            batch open; '' otherwise.
    """

    name: str
    calls: Tuple[Call, ...]
    inputs: Tuple[str, ...]
    outputs: Tuple[str, ...]
    shapes: Mapping[str, Shape]
    arrays: Mapping[str, np.ndarray]
    fixed_batch: str = ""

    def size(self, name: str) -> int:
        """The number of elements of a variable, or :data:`OPEN`."""
        shape = self.shapes[name]
        return OPEN if OPEN in shape else math.prod(shape)

    @classmethod
    def of(
        cls, deployed: Deployed, chosen: Optional[str] = None, batch_size: Optional[int] = None
    ) -> Network:
        """The network that is run.

        Args:
            deployed: Its first executor says which network and which outputs;
                without one it is the first network with all its outputs.
            chosen: The name of the network instead.
            batch_size: None: open, if NNabla can build the network for several; else that.

        Raises:
            ExportError: There is no such network, it computes no output, or
                NNabla cannot build it.
        """
        name = _chosen(deployed, chosen)
        proto = next(network for network in deployed.definition.network if network.name == name)
        own = max(1, proto.batch_size)
        try:
            # Two batch sizes show which axes go with it.
            sizes = (own + 1, own + 2) if batch_size is None else (batch_size,) * 2
            first, second = (_build(deployed, proto, size) for size in sizes)
            reason = ""
        except RuntimeError as error:
            if batch_size is not None:
                raise ExportError(_not_built(proto, batch_size, error)) from None
            reason = one_line(error)[-200:]
            first = second = _at_own_batch(deployed, proto, own)
        outputs = _outputs(deployed, proto, first)
        calls = needed(_calls(first), outputs)
        shapes = _shapes(first, second)
        cut = next((call for call in calls if _cuts_batch(call, shapes)), None)
        if cut is not None:
            reason = f"{cut.name} takes so many samples out of it"
            first = _at_own_batch(deployed, proto, own)
            calls, shapes = needed(_calls(first), outputs), _shapes(first, first)
        used = {n for call in calls for n in (*call.inputs, *call.outputs)} | set(outputs)
        shapes = {name: shape for name, shape in shapes.items() if name in used}
        arrays = {n: first[1][n].d for n in first[0].parameters if n in used}
        inputs = tuple(n for n in first[0].inputs if n in used and n not in arrays)
        if not reason and batch_size is None and all(OPEN not in shapes[n] for n in inputs):
            saved = [shapes[name][0] for name in inputs if shapes[name]]
            reason = f"the network was saved with a batch of {saved[0]}" if saved else ""
        return cls(name, calls, inputs, outputs, shapes, arrays, reason)


def not_written(network: Network, call: Call, form: str, reason: str) -> ExportError:
    """The error about a function that cannot be written in a format."""
    return ExportError(
        f"function {call.name} ({call.type}) of network {network.name} cannot be written as "
        f"{form}: {reason}"
    )


def _chosen(deployed: Deployed, chosen: Optional[str]) -> str:
    names = deployed.networks
    if chosen is not None:
        if chosen not in names:
            raise ExportError(f"there is no network {chosen!r}; there are {', '.join(names)}")
        return chosen
    executors = [e for e in deployed.definition.executor if e.network_name in names]
    with_outputs = [e.network_name for e in executors if e.output_variable]
    return str([*with_outputs, *(e.network_name for e in executors), *names][0])


def _at_own_batch(deployed: Deployed, proto: Any, size: int) -> Any:
    try:
        return _build(deployed, proto, size)
    except RuntimeError as error:
        raise ExportError(_not_built(proto, size, error)) from None


def _not_built(proto: Any, size: int, error: BaseException) -> str:
    reason = one_line(error)[-200:]
    return f"network {proto.name} cannot be built for a batch of {size}: {reason}"


def _build(deployed: Deployed, proto: Any, batch_size: int) -> Tuple[Any, Dict[str, Any]]:
    """NNabla's network without loops, and its variables and parameters by name."""
    definition = nnabla_pb2.NNablaProtoBuf()
    network = definition.network.add()
    network.CopyFrom(proto)
    made = {name for function in network.function for name in function.output}
    for variable in network.variable:
        if variable.name in made:
            # Some writers call everything a parameter.
            variable.type = "Buffer"
    for i, function in enumerate(network.function):
        # NNabla computes only those that have a name.
        function.name = function.name or f"{function.type}_{i + 1}"
    scope: Any = OrderedDict()
    with nn.parameter_scope("", scope), nn.context_scope(nn.Context(["cpu:float"])):
        for name, parameter in deployed.parameters.items():
            variable = nn.Variable.from_numpy_array(parameter.array, need_grad=False)
            nn.parameter.set_parameter(name, variable)
        graph = nn.graph_def.ProtoGraph.from_proto(
            definition, batch_size=batch_size, param_scope=scope
        )
        graph.expand_loop_control()
        net = graph.networks[proto.name]
        with nn.auto_forward(False):
            net(batch_size=batch_size)
    named = {**net.parameters, **net.variables}
    return net, {name: v.variable_instance for name, v in named.items()}


def _shapes(
    first: Tuple[Any, Dict[str, Any]], second: Tuple[Any, Dict[str, Any]]
) -> Dict[str, Shape]:
    return {
        name: tuple(a if a == b else OPEN for a, b in zip(v.shape, second[1][name].shape))
        for name, v in first[1].items()
    }


def _cuts_batch(call: Call, shapes: Mapping[str, Shape]) -> bool:
    """Whether it is a slice with an end of the batch, as NNabla saves ``x[:, 1:]``."""
    if call.type != "Slice":
        return False
    before, after = shapes[call.inputs[0]], shapes[call.outputs[0]]
    if any(a == OPEN and b != OPEN for a, b in zip(before, after)):
        return True
    indices = [call.arguments[name] for name in ("start", "stop", "step")]
    own = zip(before[len(before) - len(indices[0]) :], zip(*indices))
    # Such as x[:-1], whose output goes with the batch too, but is shorter.
    return any(size == OPEN and tuple(cut) not in _WHOLE for size, cut in own)


def _outputs(deployed: Deployed, proto: Any, built: Tuple[Any, Dict[str, Any]]) -> Tuple[str, ...]:
    net, _ = built
    made = {name for function in net.functions.values() for name in function.outputs}
    for executor in deployed.definition.executor:
        names = tuple(dict.fromkeys(v.variable_name for v in executor.output_variable))
        if executor.network_name == proto.name and names and all(name in made for name in names):
            return names
    used = {name for function in net.functions.values() for name in function.inputs}
    outputs = tuple(
        name for function in net.functions.values() for name in function.outputs if name not in used
    )
    if not outputs:
        raise ExportError(f"network {proto.name} computes no output")
    return outputs


def _calls(built: Tuple[Any, Dict[str, Any]]) -> List[Call]:
    net, variables = built
    calls = []
    for function in net.forward_sequence():
        parent = variables[function.outputs[0]].parent
        # What NNabla computes with: sizes that the definition leaves open are filled in.
        arguments = function.args if parent is None else parent.info.args
        inputs, outputs = tuple(function.inputs), tuple(function.outputs)
        calls.append(Call(function.name, function.type, dict(arguments), inputs, outputs))
    return calls


def needed(calls: Sequence[Call], outputs: Tuple[str, ...]) -> Tuple[Call, ...]:
    """The calls that compute these variables, in their order."""
    wanted: Set[str] = set(outputs)
    kept = []
    for call in reversed(calls):
        if wanted.intersection(call.outputs):
            wanted.update(call.inputs)
            kept.append(call)
    return tuple(reversed(kept))
