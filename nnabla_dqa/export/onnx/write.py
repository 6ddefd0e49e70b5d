"""Writing a deployed network as ONNX."""

from __future__ import annotations

from typing import Mapping, Optional, Tuple

import numpy as np

from nnabla_dqa._util.files import PathLike, write_atomically
from nnabla_dqa.export.deployed import Deployed
from nnabla_dqa.export.errors import ExportError, check_ending, check_finite
from nnabla_dqa.export.network import Network
from nnabla_dqa.export.onnx.functions import WRITERS
from nnabla_dqa.export.onnx.graph import OPSET, Graph, refusal
from nnabla_dqa.export.onnx.integers import INTEGER, Activation, on_integers
from nnabla_dqa.export.onnx.packages import onnx
from nnabla_dqa.export.onnx.sizes import OnnxFile, Sizes
from nnabla_dqa.export.onnx.weights import add_float, add_packed

SUFFIX = ".onnx"
AUTO, FLOAT, INTEGERS, PAIRS = "auto", "float", "integer", "qdq"
ARITHMETIC = (AUTO, FLOAT, INTEGERS, PAIRS)
"""How layers whose activations are quantized can be computed."""


def write_onnx(
    deployed: Deployed,
    path: PathLike,
    network: Optional[str] = None,
    arithmetic: str = AUTO,
) -> OnnxFile:
    """Write a deployed network as ONNX with packed weights, atomically.

    Quantized weights are integers of their width in uint8 bytes (1, 2, 4 or 8
    bits each; 1.6 for three levels), which standard operators of the graph
    unpack to exactly the float32 weights of the deployed network; runtimes do
    that once, when they load the file. Everything else is what NNabla
    computes, in float32. The batch size is open if NNabla can build the
    network for several, and inputs and outputs keep their names.

    Where what enters layers is quantized, QuantizeLinear makes bytes of it,
    and the layers are computed on integers; see
    :mod:`nnabla_dqa.export.onnx.integers`.

    Args:
        deployed: Of :func:`nnabla_dqa.nnp.deploy.deployed_from`,
            :func:`nnabla_dqa.graph.deploy.deploy_graph` or
            :func:`nnabla_dqa.export.nnp.read_nnp`.
        path: Ends in ``.onnx``; replaced if it exists.
        network: Which network; default: that of the first executor.
        arithmetic: ``"float"``: layers in float32, activations quantized by the
            functions of the .nnp; ``"integer"``: sums of whole numbers, exact,
            where that can be, in at least one layer; ``"qdq"``: the same, but
            convolutions whose output becomes bytes at once stand between
            DequantizeLinear and QuantizeLinear, with the bias as whole number: faster,
            and not exact; ``"auto"``: integer if activations are quantized, else float.

    Raises:
        ValueError: ``arithmetic`` is something else.
        ExportError: ``path`` does not end in ``.onnx``, a function cannot be
            written (names it), a parameter holds NaN or infinity, or a tensor
            is not on its levels.
        OnnxMissingError: The package ``onnx`` is not installed.
        OSError: The file cannot be written.
    """
    check_arithmetic(arithmetic)
    target = check_ending(path, SUFFIX)
    package = onnx()
    graph, messages = build_graph(deployed, network, arithmetic)
    model = graph.model()
    try:
        package.checker.check_model(model, full_check=True)
    except (package.checker.ValidationError, package.shape_inference.InferenceError) as error:
        raise ExportError(
            f"network {graph.network.name} gives a graph that onnx refuses: "
            f"{' '.join(str(error).split())[:300]}"
        ) from None
    data = model.SerializeToString()
    write_atomically(target, data)
    sizes = Sizes.of(graph, deployed, len(data))
    return OnnxFile(target, deployed, graph.network, sizes, messages)


def check_arithmetic(arithmetic: str) -> None:
    """Raise ValueError if there is no such arithmetic."""
    if arithmetic not in ARITHMETIC:
        raise ValueError(f"arithmetic={arithmetic!r} is none of {', '.join(ARITHMETIC)}")


def build_graph(
    deployed: Deployed, network: Optional[str] = None, arithmetic: str = AUTO
) -> Tuple[Graph, Tuple[str, ...]]:
    """The ONNX graph of a deployed network, and what a user should know of it.

    Raises:
        ExportError: As :func:`write_onnx`.
    """
    run = Network.of(deployed, network)
    messages: Tuple[str, ...] = ()
    activations: Mapping[str, Activation] = {}
    if run.fixed_batch:
        messages = (f"the batch size is fixed: {run.fixed_batch}",)
    if arithmetic in (INTEGERS, PAIRS) or (arithmetic == AUTO and deployed.activations):
        rewritten = on_integers(run, deployed)
        if arithmetic != AUTO and not any(c.type == INTEGER for c in rewritten.network.calls):
            why = "; ".join(rewritten.messages) or "none has quantized activations"
            raise ExportError(f"no layer can be computed on integers: {why}")
        run, activations = rewritten.network, rewritten.activations
        messages += rewritten.messages
    unknown = [call for call in run.calls if call.type not in WRITERS]
    if unknown:
        reason = f"nnabla_dqa does not write {unknown[0].type} with operators of opset {OPSET}"
        raise refusal(run, unknown[0], reason)
    graph = Graph(run, deployed.tensors, activations, arithmetic == PAIRS)
    for name, array in run.arrays.items():
        _check_parameter(graph, name, array)
    as_float = {n for call in run.calls if call.type != INTEGER for n in call.inputs}
    for name, array in run.arrays.items():
        if name in as_float or name in run.outputs:
            _add_parameter(graph, name, array)
    for call in run.calls:
        graph.begin(call.name)
        WRITERS[call.type](graph, call)
    if arithmetic == PAIRS:
        messages += _without_pairs(graph)
    return graph, messages


def _without_pairs(graph: Graph) -> Tuple[str, ...]:
    """What a user who asked for pairs should know."""
    weights = [
        call.arguments["layer"].inputs[1]
        for call in graph.network.calls
        if call.type == INTEGER and call.name not in graph.paired
    ]
    left = [name.rpartition("/")[0] or name for name in weights]
    if not graph.paired:
        return (
            f"no layer can stand between DequantizeLinear and QuantizeLinear, so the file is that "
            f"of {INTEGERS!r}: this takes a convolution whose output becomes bytes at once, and "
            f"weights such as LSQ's or SAWB's",
        )
    if left:
        return (f"computed as with {INTEGERS!r}: {', '.join(left)}",)
    return ()


def _check_parameter(graph: Graph, name: str, array: np.ndarray) -> None:
    check_finite(name, array)
    fault = graph.tensors[name].fault() if name in graph.tensors else ""
    if fault:
        raise ExportError(f"parameter {name} is not on the levels that are stated: {fault}")


def _add_parameter(graph: Graph, name: str, array: np.ndarray) -> None:
    tensor = graph.tensors.get(name)
    if tensor is None or tensor.quantizer.is_float:
        add_float(graph, name, array)
    else:
        add_packed(graph, tensor)
