"""From a trained graph to an NNP whose weights lie on their low-bit grids."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, Dict, List, Mapping, Tuple

import nnabla as nn
import numpy as np

from nnabla_dqa._util.files import PathLike
from nnabla_dqa._util.tables import format_table
from nnabla_dqa._util.warn import warn
from nnabla_dqa._version import __version__
from nnabla_dqa.graph.save import save_network
from nnabla_dqa.graph.traverse import LiveGraph
from nnabla_dqa.layers.report import LayerReport, Report, report, short_name
from nnabla_dqa.layers.tensors import (
    STATE_SCOPE,
    AttentionWarning,
    QuantizedTensor,
    find_quantized,
    scopes_around,
)
from nnabla_dqa.nnp.metadata import claim, distinct_values, grid_of
from nnabla_dqa.quantization import FullPrecision, Quantizer
from nnabla_dqa.quantization.graph_ops import Variable

FORMAT = 1


@dataclasses.dataclass(frozen=True)
class DeployedLayer:
    """A layer of a deployed file: its report, the quantizer used and the distinct values found.

    ``values`` is the largest number of distinct values in a tensor, or in a
    channel if the grid is per channel.
    """

    report: LayerReport
    quantizer: str
    bits: int
    values: int


@dataclasses.dataclass(frozen=True)
class Deployment:
    """What :func:`deploy` wrote; ``str()`` of it is a table."""

    path: Path
    file_bytes: int
    parameters: int
    layers: Tuple[DeployedLayer, ...]

    @property
    def weights(self) -> int:
        """The number of weights in DQA layers."""
        return sum(row.report.weights for row in self.layers)

    @property
    def bits_per_weight(self) -> float:
        """Mean bits of the quantizers over the weights of the DQA layers."""
        return sum(row.bits * row.report.weights for row in self.layers) / self.weights

    @property
    def file_bits_per_parameter(self) -> float:
        """Bits of the whole file, network definition and biases included, per parameter."""
        return 8 * self.file_bytes / self.parameters

    def __str__(self) -> str:
        head = ("layer", "weights", "quantizer", "bits", "values", "attention")
        rows = [
            (
                row.report.name,
                f"{row.report.weights:,}",
                row.quantizer,
                str(row.bits),
                str(row.values),
                " ".join(f"{a:.3f}" for a in row.report.attention),
            )
            for row in self.layers
        ]
        return (
            f"{format_table([head, *rows])}\n{self.path}: {self.file_bytes:,} bytes, "
            f"{self.file_bits_per_parameter:.2f} bits per parameter on disk (with what stays float "
            f"and the network's definition)"
        )


def deploy(
    path: PathLike,
    inputs: Mapping[str, Variable],
    outputs: Mapping[str, Variable],
    choose: str = "lowest",
    network: str = "main",
    variable_batch_size: bool = True,
    allow_untrained: bool = False,
) -> Deployment:
    """Write the graph as an NNP with standard functions and the quantized weights baked in.

    Give the evaluation graph (batch normalization on running statistics);
    whether it was built under ``with dqa.hard():`` makes no difference. In the
    file each DQA layer's ``W`` holds ``scale * codes + offset`` of one
    quantizer, and everything that computed it is gone. Other parameters,
    functions and the given names stay as they are. The outputs of the file
    equal those of the graph built under :func:`~nnabla_dqa.hard` exactly.
    Nothing in the parameter scope is changed.

    Args:
        path: The file, ``.nnp``; replaced atomically if it exists.
        inputs: Input variables by the names they shall have.
        outputs: Output variables by name.
        choose: ``"lowest"``: each layer's lowest bit width; ``"argmax"``: the
            quantizer with the largest share of attention.
        network: Name of the network in the file; its executor is ``runtime``.
        variable_batch_size: Leave the batch size open.
        allow_untrained: Deploy although no schedule has moved yet, without warnings.

    Returns:
        What was written, layer by layer.

    Raises:
        ValueError: A wrong argument, a variable in ``inputs`` that the outputs
            do not depend on or one that is missing there, no DQA layer in the
            graph, a layer that mixes quantizers and was never trained, NaN or
            infinity in a parameter (names it), or a layer whose weights other
            functions use as they are.
        OSError: The file cannot be written.

    Warns:
        AttentionWarning: For each layer whose attention is not on the lowest
            bit width alone, if that is what is deployed.
        UserWarning: The graph normalizes by batch statistics.
    """
    if choose not in ("lowest", "argmax"):
        raise ValueError(f"deploy: choose={choose!r} is neither 'lowest' nor 'argmax'")
    _check_names(inputs, outputs)
    graph = LiveGraph.of(outputs)
    _check_inputs(graph, inputs)
    layers = [layer for layer in find_quantized() if layer.weight.data in graph.leaves]
    if not layers:
        raise ValueError(
            "deploy: the graph has no DQA layer of the current parameter scope; call it in the "
            "scope in which the model was built"
        )
    _check_values(graph)
    if not allow_untrained:
        _check_trained(layers)
    rows = {layer.name: row for layer, row in zip(layers, _rows(layers))}
    chosen = {
        layer.name: rows[layer.name].argmax if choose == "argmax" else layer.mixture.target
        for layer in layers
    }
    if choose == "lowest" and not allow_untrained:
        for message in Report(tuple(rows.values())).messages():
            warn(message, AttentionWarning)
    baked = {}
    deployed, notes = [], []
    if choose == "argmax":
        _check_open(graph, layers)
    with graph.hardened(layers, chosen):
        for layer in layers:
            quantizer = layer.mixture.quantizers[chosen[layer.name]]
            weights = graph.weights_of(layer)
            nn.forward_all([v for v in weights if v.parent is not None])
            baked[layer.weight_name] = [v for v in weights if v.parent is not None]
            values = _check_grid(layer, quantizer, weights)
            row = rows[layer.name]
            deployed.append(DeployedLayer(row, short_name(quantizer), quantizer.bits, values))
            grid = grid_of(quantizer, layer.weight.d, layer.quantizer_state(chosen[layer.name]))
            if grid is not None and not np.array_equal(grid.decode(), weights[0].d):
                grid = None  # the user's apply_w changed the weights before
            notes.append(
                claim(layer.weight_name, quantizer, layer.mixture, row, grid, weights[0].d)
            )
        size = save_network(
            path, inputs, outputs, network, baked, _metadata(notes), variable_batch_size
        )
    return Deployment(Path(path), size, graph.parameter_count(layers), tuple(deployed))


def _check_names(inputs: Any, outputs: Any) -> None:
    for kind, named in (("inputs", inputs), ("outputs", outputs)):
        ok = isinstance(named, Mapping) and named
        if not ok or not all(isinstance(v, nn.Variable) for v in named.values()):
            raise ValueError(f"deploy: {kind} must be {{name: nn.Variable, ...}}; got {named!r}")
    both = sorted(set(inputs) & set(outputs))
    if both:
        raise ValueError(f"deploy: {both[0]!r} is the name of an input and of an output")


def _check_inputs(graph: LiveGraph, inputs: Mapping[str, Variable]) -> None:
    for name, v in inputs.items():
        if v.data not in graph.leaves:
            raise ValueError(
                f"deploy: the outputs do not depend on the variable given as input {name!r}"
            )
    for function in graph.functions:
        arguments = function.arguments if function.info.type_name == "BatchNormalization" else {}
        if arguments.get("batch_stat"):
            warn(
                "deploy: the graph uses batch statistics, as in training; build the model to "
                "deploy with batch_normalization(..., batch_stat=False)",
                UserWarning,
            )
            return


def _check_values(graph: LiveGraph) -> None:
    for name, v in nn.get_parameters(grad_only=False).items():
        if v.data in graph.leaves and not np.isfinite(v.d).all():
            raise ValueError(f"deploy: parameter {name} holds NaN or infinity; nothing was written")


def _check_trained(layers: List[QuantizedTensor]) -> None:
    for layer in layers:
        counts = [node.get(STATE_SCOPE, {}).get("step") for node in scopes_around(layer.scope)]
        if layer.mixture.is_mixed and not any(
            count.d[0] > 0 for count in counts if count is not None
        ):
            raise ValueError(
                f"deploy: layer {layer.name} was never trained with a schedule (no update is "
                f"counted); use dqa.attach, or allow_untrained=True"
            )


def _check_open(graph: LiveGraph, layers: List[QuantizedTensor]) -> None:
    for layer in layers:
        if layer.mixture.is_mixed and layer.state["hard"].data not in graph.leaves:
            raise ValueError(
                f"deploy: layer {layer.name} was built under dqa.hard(), which has chosen already; "
                f"choose='argmax' needs a graph built without it"
            )


def _rows(layers: List[QuantizedTensor]) -> List[LayerReport]:
    by_name = {row.name: row for row in report().layers}
    return [by_name[layer.name] for layer in layers]


def _check_grid(layer: QuantizedTensor, quantizer: Quantizer, uses: List[Variable]) -> int:
    """Count the distinct values a range holds; raise if the quantizer cannot have made them."""
    values = uses[0].d
    if any(not np.array_equal(values, v.d) for v in uses[1:]):
        raise ValueError(
            f"deploy: layer {layer.name} is used with different weights in one graph; was a part "
            f"of it built under dqa.hard() with another choose?"
        )
    count = distinct_values(values, quantizer.axis)
    if not isinstance(quantizer, FullPrecision) and count > quantizer.levels:
        raise ValueError(
            f"deploy: layer {layer.name} has {count} distinct weights, {quantizer} allows "
            f"{quantizer.levels}; was the graph built under dqa.hard() with another choose?"
        )
    return count


def _metadata(notes: List[Dict[str, Any]]) -> Dict[str, Any]:
    return {"format": FORMAT, "kind": "deployed", "nnabla_dqa": __version__, "layers": notes}
