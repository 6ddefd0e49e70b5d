"""Writing a deployed network as ONNX."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Optional

import numpy as np

from nnabla_dqa._util.files import PathLike, check_target, write_atomically
from nnabla_dqa.export.deployed import Deployed
from nnabla_dqa.export.onnx.functions import WRITERS
from nnabla_dqa.export.onnx.graph import OPSET, Graph, refusal
from nnabla_dqa.export.onnx.network import ExportError, Network
from nnabla_dqa.export.onnx.packages import onnx
from nnabla_dqa.export.onnx.sizes import OnnxFile, Sizes
from nnabla_dqa.export.onnx.weights import add_float, add_packed

SUFFIX = ".onnx"


def write_onnx(deployed: Deployed, path: PathLike, network: Optional[str] = None) -> OnnxFile:
    """Write a deployed network as ONNX with packed weights, atomically.

    Quantized weights are integers of their width in uint8 bytes (1, 2, 4 or 8
    bits each; 1.6 for three levels), which standard operators of the graph
    unpack to exactly the float32 weights of the deployed network; runtimes do
    that once, when they load the file. Everything else is what NNabla
    computes, in float32. The batch size is open if NNabla can build the
    network for several, and inputs and outputs keep their names.

    Args:
        deployed: Of :func:`nnabla_dqa.nnp.deploy.deployed_from`,
            :func:`nnabla_dqa.graph.deploy.deploy_graph` or
            :func:`nnabla_dqa.export.nnp.read_nnp`.
        path: Ends in ``.onnx``; replaced if it exists.
        network: Which network; default: that of the first executor.

    Raises:
        ExportError: ``path`` does not end in ``.onnx``, a function cannot be
            written (names it), a parameter holds NaN or infinity, or a tensor
            is not on its levels.
        OnnxMissingError: The package ``onnx`` is not installed.
        OSError: The file cannot be written.
    """
    target = check_onnx_output(path)
    package = onnx()
    graph = build_graph(deployed, network)
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
    return OnnxFile(target, deployed, graph.network, Sizes.of(graph, deployed, len(data)))


def check_onnx_output(path: PathLike) -> Path:
    """``path`` if an ONNX file can be written there; raises ExportError or OSError."""
    if Path(path).suffix != SUFFIX:
        raise ExportError(f"{path}: the name must end in {SUFFIX}")
    return check_target(path)


def build_graph(deployed: Deployed, network: Optional[str] = None) -> Graph:
    """The ONNX graph of a deployed network; raises ExportError as :func:`write_onnx`."""
    run = Network.of(deployed, network)
    unknown = [call for call in run.calls if call.type not in WRITERS]
    if unknown:
        reason = f"nnabla_dqa does not write {unknown[0].type} with operators of opset {OPSET}"
        raise refusal(run, unknown[0], reason)
    graph = Graph(run)
    for name, array in run.arrays.items():
        _add_parameter(graph, deployed, name, array)
    for call in run.calls:
        graph.begin(call.name)
        WRITERS[call.type](graph, call)
    return graph


def _add_parameter(graph: Graph, deployed: Deployed, name: str, array: Any) -> None:
    if not np.isfinite(array).all():
        raise ExportError(f"parameter {name} holds NaN or infinity; nothing was written")
    tensor = deployed.tensors.get(name)
    if tensor is None or tensor.quantizer.is_float:
        add_float(graph, name, array)
        return
    fault = tensor.fault()
    if fault:
        raise ExportError(f"parameter {name} is not on the levels that are stated: {fault}")
    add_packed(graph, tensor)
