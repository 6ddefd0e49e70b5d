"""From a trained graph to a deployed network: weights on their levels, mixtures gone."""

from __future__ import annotations

from typing import Any, Dict, List, Mapping

import nnabla as nn
import numpy as np

from nnabla_dqa._util.files import PathLike
from nnabla_dqa._util.renamed import renamed
from nnabla_dqa._util.warn import warn
from nnabla_dqa.export.deployed import Deployed, Deployment
from nnabla_dqa.export.nnp import write_nnp
from nnabla_dqa.export.tensor import DeployedTensor, distinct_values
from nnabla_dqa.graph.activations import fix_activations, quantized_inputs
from nnabla_dqa.graph.save import network_definition
from nnabla_dqa.graph.traverse import LiveGraph
from nnabla_dqa.layers.report import LayerReport, Report, report
from nnabla_dqa.layers.scopes import checked_selection
from nnabla_dqa.layers.tensors import (
    STATE_SCOPE,
    AttentionWarning,
    QuantizedTensor,
    find_quantized,
    scopes_around,
)
from nnabla_dqa.mixing.mixture import HARD
from nnabla_dqa.nnp_format.members import check_output
from nnabla_dqa.quantization import Quantizer
from nnabla_dqa.quantization.graph_ops import Variable


@renamed(choose="select")
def deploy(
    path: PathLike,
    inputs: Mapping[str, Variable],
    outputs: Mapping[str, Variable],
    select: str = "target",
    network: str = "main",
    variable_batch_size: bool = True,
    allow_untrained: bool = False,
) -> Deployment:
    """Write the graph as an NNP of standard functions that holds the quantized weights.

    The outputs equal those of the graph built under :func:`~nnabla_dqa.hard` exactly. Nothing in
    the parameter scope is changed. :func:`deploy_graph` says more.

    Args:
        path: The file, ``.nnp``; replaced atomically if it exists.
        inputs: Input variables by the names they shall have.
        outputs: Output variables by name, of the evaluation graph.
        select: ``"target"``: each layer's target, the lowest bit width;
            ``"argmax"``: the quantizer with the largest attention.
        network: Name of the network; its executor is ``runtime``.
        variable_batch_size: Leave the batch size open.
        allow_untrained: Deploy although no schedule has moved yet, without warnings.

    Returns:
        What was written, layer by layer.

    Raises:
        ValueError: As of :func:`deploy_graph`, or ``path`` does not end in ``.nnp``.
        OSError: The file cannot be written.

    Warns:
        AttentionWarning, UserWarning: As of :func:`deploy_graph`.

    Examples:
        >>> import nnabla as nn
        >>> import nnabla_dqa as dqa
        >>> import nnabla_dqa.parametric_functions as PF
        >>> import numpy as np
        >>> x = nn.Variable((8, 64))
        >>> y = PF.dqa_affine(x, 10, name="fc", quantizers=[dqa.SAWB(2)])
        >>> result = dqa.deploy("small.nnp", {"x": x}, {"y": y})
        >>> y = nn.graph_def.load("small.nnp")(x)  # in any NNabla, without this package
        >>> len(np.unique(nn.graph_def.load("small.nnp").get_parameters()["fc/affine/W"].d))
        4
    """
    check_output(path)
    made = deploy_graph(inputs, outputs, select, network, variable_batch_size, allow_untrained)
    return write_nnp(made, path)


def deploy_graph(
    inputs: Mapping[str, Variable],
    outputs: Mapping[str, Variable],
    select: str = "target",
    network: str = "main",
    variable_batch_size: bool = True,
    allow_untrained: bool = False,
) -> Deployed:
    """The graph as a deployed network in memory, for a writer of :mod:`nnabla_dqa.export`.

    Give the evaluation graph (batch normalization on running statistics);
    whether it was built under ``with dqa.hard():`` makes no difference. Each
    DQA layer's ``W`` becomes what one quantizer makes of it, and everything
    that computed it is gone; what enters a layer quantized is so by functions of numbers
    that are fixed. Other parameters, functions and the given names
    stay as they are. The outputs equal those of the graph built under
    :func:`~nnabla_dqa.hard` exactly. Nothing in the parameter scope is changed.

    Args:
        inputs: Input variables by the names they shall have.
        outputs: Output variables by name.
        select: ``"target"``: each layer's target, the lowest bit width, or what a budget has
            chosen for it; ``"argmax"``: the quantizer with the largest attention.
        network: Name of the network; its executor is ``runtime``.
        variable_batch_size: Leave the batch size open.
        allow_untrained: Deploy although no schedule has moved yet, without warnings.

    Raises:
        ValueError: A wrong argument, a variable in ``inputs`` that the outputs
            do not depend on or one that is missing there, no DQA layer in the
            graph, a layer that mixes quantizers and was never trained, NaN or
            infinity in a parameter (names it), or a layer whose weights other
            functions use as they are.

    Warns:
        AttentionWarning: For each layer whose attention is not on its target
            alone, if that is what is deployed.
        UserWarning: The graph normalizes by batch statistics.
    """
    select = checked_selection(select, "deploy")
    _check_names(inputs, outputs)
    graph = LiveGraph.of(outputs)
    _check_inputs(graph, inputs)
    present = [layer for layer in find_quantized() if layer.weight.data in graph.leaves]
    layers = [layer for layer in present if layer.is_weight]
    entering = quantized_inputs(graph, layers, [t for t in present if not t.is_weight])
    present = [*layers, *dict.fromkeys(found.tensor for found in entering.values())]
    if not layers:
        raise ValueError(
            "deploy: the graph has no DQA layer of the current parameter scope; call it in the "
            "scope in which the model was built"
        )
    _check_values(graph)
    if not allow_untrained:
        _check_trained(present)
    rows = {layer.name: row for layer, row in zip(present, _rows(present))}
    if select == "target" and not allow_untrained:
        for message in Report(tuple(rows.values())).messages():
            warn(message, AttentionWarning)
    if select == "argmax":
        _check_open(graph, present)
    else:
        _check_follows(graph, layers)
    chosen = {name: row.argmax if select == "argmax" else row.target for name, row in rows.items()}
    fixed = fix_activations(graph, outputs, entering, chosen)
    outputs, graph = fixed.outputs, LiveGraph.of(fixed.outputs)
    materialised: Dict[str, List[Variable]] = {}
    tensors: Dict[str, DeployedTensor] = {}
    with graph.hardened(layers, chosen):
        for layer in layers:
            weights = graph.weights_of(layer)
            computed = [v for v in weights if v.parent is not None]
            nn.forward_all(computed)
            materialised[layer.weight_name] = computed
            index = chosen[layer.name]
            _check_levels(layer, layer.mixture.quantizers[index], weights)
            tensors[layer.weight_name] = _tensor(layer, index, rows[layer.name], weights[0].d)
        materialised.update({name: [v] for name, v in fixed.factors.items()})
        definition, parameters = network_definition(
            inputs, outputs, network, materialised, variable_batch_size, fixed.variables
        )
    return Deployed(definition, parameters, tensors, select, activations=fixed.tensors)


def _tensor(
    layer: QuantizedTensor, index: int, row: LayerReport, weights: np.ndarray
) -> DeployedTensor:
    # Weights that an apply_w of the user has changed before do not decode to these.
    quantizer = layer.mixture.quantizers[index]
    state = layer.quantizer_state(index)
    return DeployedTensor.of(
        layer.weight_name,
        layer.function,
        quantizer,
        {**layer.mixture.to_json(), "target": row.target},
        tuple(row.attention),
        weights,
        None if quantizer.is_float else quantizer.encode(layer.weight.d, state),
    )


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
                f"select='argmax' needs a graph built without it"
            )


def _check_follows(graph: LiveGraph, layers: List[QuantizedTensor]) -> None:
    for layer in layers:
        chosen = layer.chosen
        if chosen is None:
            continue
        if not graph.leaves.keys() & {chosen.data, layer.state[HARD].data}:
            raise ValueError(
                f"deploy: layer {layer.name} was built under dqa.hard() before it had a budget, so "
                f"it uses {layer.mixture.target_quantizer} whatever the budget chose; build the "
                f"graph to deploy anew"
            )


def _rows(layers: List[QuantizedTensor]) -> List[LayerReport]:
    by_name = {row.name: row for row in report().layers}
    return [by_name[layer.name] for layer in layers]


def _check_levels(layer: QuantizedTensor, quantizer: Quantizer, uses: List[Variable]) -> None:
    """Raise ValueError if the uses differ, or the quantizer cannot have made the values."""
    values = uses[0].d
    if any(not np.array_equal(values, v.d) for v in uses[1:]):
        raise ValueError(
            f"deploy: layer {layer.name} is used with different weights in one graph; was a part "
            f"of it built under dqa.hard() with another choice?"
        )
    count = distinct_values(values, quantizer.axis)
    if not quantizer.is_float and count > quantizer.levels:
        raise ValueError(
            f"deploy: layer {layer.name} has {count} distinct weights, {quantizer} allows "
            f"{quantizer.levels}; was the graph built under dqa.hard() with another choice?"
        )
