"""A live graph as the definition and parameters of a file that any NNabla opens."""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path
from typing import Any, Dict, List, Mapping, Optional, Sequence, Tuple

import nnabla as nn
import numpy as np

from nnabla_dqa._util.files import PathLike
from nnabla_dqa.nnp_format.archive import Archive
from nnabla_dqa.nnp_format.members import check_output
from nnabla_dqa.nnp_format.parameters import Parameter
from nnabla_dqa.quantization.graph_ops import Variable

RUNTIME = "runtime"


def save_network(
    path: PathLike,
    inputs: Mapping[str, Variable],
    outputs: Mapping[str, Variable],
    network: str = "main",
    variable_batch_size: bool = True,
) -> int:
    """Write the graph between ``inputs`` and ``outputs`` as a deflated NNP.

    Args:
        path: The file; replaced atomically if it exists.
        inputs: Input variables by the names they shall have.
        outputs: Output variables by name.
        network: Name of the network; its executor is called ``runtime``.
        variable_batch_size: Leave the first axis open, as NNabla's ``save`` does.

    Returns:
        The size of the file in bytes.

    Raises:
        ValueError: ``path`` does not end in ``.nnp``, or as of :func:`network_definition`.
        OSError: The file cannot be written.
    """
    check_output(path)
    definition, parameters = network_definition(
        inputs, outputs, network, variable_batch_size=variable_batch_size
    )
    return Archive(Path(path), definition, parameters, None, {}).write(path)


def network_definition(
    inputs: Mapping[str, Variable],
    outputs: Mapping[str, Variable],
    network: str = "main",
    materialised: Optional[Mapping[str, Sequence[Variable]]] = None,
    variable_batch_size: bool = True,
    named: Optional[Mapping[str, Variable]] = None,
) -> Tuple[Any, Dict[str, Parameter]]:
    """The graph between ``inputs`` and ``outputs`` as NNabla's definition, and its parameters.

    Args:
        inputs, outputs, network, variable_batch_size: As of :func:`save_network`.
        materialised: Variables whose present values become the parameter of
            this name; what computed them is left out. Several for one name
            must have equal values: the uses of shared weights.
        named: Other variables by the names they shall have.

    Returns:
        ``NNablaProtoBuf`` with one network and its executor, and the
        parameters by name.

    Raises:
        ValueError: An input of the graph has no name, a materialised parameter
            is also used as it was, or the batch size cannot be left open.
    """
    # Names that no parameter can have, until the parameters they replace are gone.
    marks = {
        f"{name}\n{i}": variable
        for name, variables in (materialised or {}).items()
        for i, variable in enumerate(variables)
    }
    graph = nn.graph_def.create_graph_from_variable(
        network, list(outputs.values()), names={**(named or {}), **inputs, **marks, **outputs}
    )
    net = graph.default_graph()
    _materialise(net, {mark: variable.d.copy() for mark, variable in marks.items()})
    _prune(net, list(outputs))
    unnamed = [v for v in net.variables.values() if v.parent is None and v.name not in inputs]
    if unnamed:
        raise ValueError(
            f"the graph has another input, of shape {tuple(unnamed[0].shape)}, that is not in "
            f"inputs={sorted(inputs)}; give the variables on which the model was built"
        )
    return _definition(graph, net, inputs, outputs, variable_batch_size), _parameters(net)


def _materialise(net: Any, values: Dict[str, np.ndarray]) -> None:
    for mark, value in values.items():
        name = mark.split("\n")[0]
        parameter = nn.ProtoVariable(value.shape, name, False, "Parameter")
        parameter.variable_instance = nn.Variable.from_numpy_array(value, need_grad=False)
        del net.variables[mark]
        net.parameters[mark] = parameter


def _prune(net: Any, outputs: List[str]) -> None:
    """Keep only what the outputs need, and give materialised parameters their final names."""
    wanted = set(outputs)
    for name, function in reversed(list(net.functions.items())):
        if any(out in wanted and out not in net.parameters for out in function.outputs):
            wanted.update(function.inputs)
            # Of a function with several outputs NNabla needs also those that nothing uses.
            wanted.update(out for out in function.outputs if out not in net.parameters)
        else:
            del net.functions[name]
    variables = OrderedDict((k, v) for k, v in net.variables.items() if k in wanted)
    net.variables = variables
    kept = [(k, v) for k, v in net.parameters.items() if k in wanted]
    for mark, parameter in kept:
        if "\n" in mark and parameter.name in wanted:
            raise ValueError(
                f"parameter {parameter.name} is used both quantized and as it is (tied weights); "
                f"one file cannot hold both under one name"
            )
    net.parameters = OrderedDict((v.name, v) for _, v in kept)
    for function in net.functions.values():
        function.inputs = [name.split("\n")[0] for name in function.inputs]


def _definition(
    graph: Any,
    net: Any,
    inputs: Mapping[str, Variable],
    outputs: Mapping[str, Variable],
    variable_batch_size: bool,
) -> Any:
    from nnabla.core.graph_def import ProtoExecutor

    executor = {
        "name": RUNTIME,
        "network": net.name,
        "data": [name for name in inputs if name in net.variables],
        "output": list(outputs),
    }
    graph.executors = {RUNTIME: ProtoExecutor.create_from_dict(executor, net)}
    base_axes = _without_base_axes(net) if variable_batch_size else {}
    try:
        proto = graph.as_proto(variable_batch_size=variable_batch_size)
    except AssertionError:
        raise ValueError(
            "the batch size cannot be left open: a Reshape or Broadcast does not keep the first "
            "axis; use variable_batch_size=False"
        ) from None
    for written in proto.network:
        written.batch_size = next((v.shape[0] for v in inputs.values() if v.shape), 1)
        for function in written.function:
            for _, arguments in function.ListFields():
                if function.name in base_axes and hasattr(arguments, "base_axis"):
                    arguments.base_axis = base_axes[function.name]
    return proto


def _without_base_axes(net: Any) -> Dict[str, int]:
    """Let all layers begin at axis 1 for now; returns where those begin that do not.

    To open the batch size, NNabla would make one axis of all that stand before such a layer's, also
    in the shapes of inputs, and leave the layer another number of weights.
    """
    found: Dict[str, int] = {}
    for name, function in net.functions.items():
        shapes = [net.variables[i].shape for i in function.inputs if i in net.variables]
        axis = function.args.get("base_axis", 1)
        if axis == 1 or not shapes:
            continue
        if axis % max(1, len(shapes[0])) == 0:
            raise ValueError(
                f"the batch size cannot be left open: {function.type} {name} has base_axis={axis}, "
                f"so the batch is one of its axes; use variable_batch_size=False"
            )
        found[name], function.args["base_axis"] = axis, 1
    return found


def _parameters(net: Any) -> Dict[str, Parameter]:
    instances = {name: v.variable_instance for name, v in net.parameters.items()}
    return {name: Parameter(v.d, v.need_grad) for name, v in instances.items()}
