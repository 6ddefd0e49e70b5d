"""What of a network is shown: its layers, their weights before and on their levels, activations."""

from __future__ import annotations

import dataclasses
from collections import OrderedDict
from typing import Any, Dict, List, Mapping, NamedTuple, Optional, Tuple

import nnabla as nn
import numpy as np

from nnabla_dqa._util.files import PathLike
from nnabla_dqa._util.messages import one_line
from nnabla_dqa.export.activation import DeployedActivation
from nnabla_dqa.export.deployed import Deployed
from nnabla_dqa.export.metadata import DEPLOYED
from nnabla_dqa.export.nnp import deployed_of
from nnabla_dqa.export.quantizer_info import short_name
from nnabla_dqa.export.tensor import DeployedTensor
from nnabla_dqa.layers.report import short_names
from nnabla_dqa.layers.tensors import QuantizedTensor, find_quantized, layer_name
from nnabla_dqa.nnp.deploy import deployed_from
from nnabla_dqa.nnp.file import CONVERTED, NetworkFile
from nnabla_dqa.nnp.inspect import running_networks
from nnabla_dqa.nnp.summary import FileSummary, summarize
from nnabla_dqa.reporting.page.run_record import RunRecord


class Weights(NamedTuple):
    """The weights of a layer: float, if they are known, and quantized, if they are."""

    layer: str
    before: Optional[np.ndarray]
    after: Optional[DeployedTensor]


class Mixed(NamedTuple):
    """The names of the quantizers that a tensor mixes, and the index of the one that remains."""

    quantizers: Tuple[str, ...] = ()
    target: int = 0


@dataclasses.dataclass(frozen=True)
class NetworkView:
    """A network, out of a file or of a run.

    Attributes:
        summary: Bits and bytes by layer; None for a run without a network file.
        weights: By layer.
        activations: What enters layers quantized, with its range.
        mixed: What each tensor mixes, by ``conv1/conv`` and ``conv1/conv:input``.
        notes: What is missing, and why.
    """

    summary: Optional[FileSummary]
    weights: Tuple[Weights, ...]
    activations: Tuple[DeployedActivation, ...] = ()
    mixed: Mapping[str, Mixed] = dataclasses.field(default_factory=dict)
    notes: Tuple[str, ...] = ()


def view_of_file(path: PathLike, max_bytes: Optional[int] = None) -> NetworkView:
    """What an NNP holds, whether float, converted, deployed or packed.

    Raises:
        NNPError, OSError: As of :func:`~nnabla_dqa.nnp.summary.summarize`.
    """
    summary = summarize(path, max_bytes)
    file = NetworkFile.read(path, max_bytes)
    notes: List[str] = []
    deployed: Optional[Deployed] = None
    if file.kind == DEPLOYED:
        deployed = deployed_of(file.archive)
    elif file.kind == CONVERTED:
        deployed = _as_deployed(file, notes)
    tensors = {} if deployed is None else deployed.tensors
    arrays = {} if file.kind == DEPLOYED else _arrays(file)
    weights = []
    for layer in file.layers:
        after = tensors.get(layer.weight)
        before = arrays.get(layer.weight)
        if after is None and file.kind == DEPLOYED:
            before = file.archive.parameters[layer.weight].array
        weights.append(Weights(layer.name, before, after))
    mixed = {name: Mixed(short_names(m), m.target) for name, m in file.all_mixtures.items()}
    return NetworkView(
        summary,
        tuple(weights),
        () if deployed is None else tuple(deployed.activations.values()),
        {**mixed, **_mixed(deployed)},
        tuple(notes),
    )


def view_of_run(record: RunRecord, max_bytes: Optional[int] = None) -> NetworkView:
    """The network that a run deployed, or its layers as they are in the checkpoint.

    Raises:
        NNPError, CheckpointError, OSError: A file of the run cannot be read.
        ValueError: The checkpoint has a layer whose quantizers are not known.
    """
    found = [record.place.path / name for name in ("deployed.nnp", "network.nnp")]
    path = next((p for p in found if p.is_file()), None) if record.result is not None else None
    checkpoint = record.checkpoint
    arrays = {} if checkpoint is None else checkpoint.arrays
    if path is None:
        note = "The run has deployed nothing yet: weights are those of its last checkpoint."
        if record.result is not None:
            note = "There is no deployed file in its folder: weights are those of its checkpoint."
        return _of_checkpoint(arrays, note)
    view = view_of_file(path, max_bytes)
    weights = [
        w._replace(before=float_weights(arrays, w.after)) if w.after is not None else w
        for w in view.weights
    ]
    notes = list(view.notes)
    if checkpoint is None:
        notes.append("The run has no checkpoint any more, so its float weights are not shown.")
    return dataclasses.replace(view, weights=tuple(weights), notes=tuple(notes))


def float_weights(arrays: Mapping[str, np.ndarray], after: DeployedTensor) -> Optional[np.ndarray]:
    """The float weights that a tensor was made from, in its shape; None if they are not known."""
    array = arrays.get(after.name)
    if array is not None and array.ndim == 4 and array.shape != after.shape:
        # A model that was trained with channels last is deployed with channels first.
        array = array.transpose(0, 3, 1, 2)
    return array if array is not None and array.shape == after.shape else None


def _as_deployed(file: NetworkFile, notes: List[str]) -> Optional[Deployed]:
    """A converted file as deploying would make it now."""
    every = not running_networks(file.archive.definition)
    try:
        return deployed_from(file, whole=every, allow_untrained=True)
    except ValueError as error:
        notes.append(f"Its levels cannot be shown: {one_line(error)}.")
        return None


def _arrays(file: NetworkFile) -> Dict[str, np.ndarray]:
    return {layer.weight: file.archive.parameters[layer.weight].array for layer in file.layers}


def _mixed(deployed: Optional[Deployed]) -> Dict[str, Mixed]:
    if deployed is None:
        return {}
    found: Dict[str, Mapping[str, Any]] = {t.layer: t.mixture for t in deployed.tensors.values()}
    found.update({a.layer: a.mixture for a in deployed.activations.values()})
    return {name: _described(mixture) for name, mixture in found.items()}


def _described(mixture: Mapping[str, Any]) -> Mixed:
    """A mixture as JSON, the classes of whose quantizers need not be known."""
    listed = mixture.get("quantizers")
    entries = [q for q in listed if isinstance(q, Mapping)] if isinstance(listed, list) else []
    target = mixture.get("target", 0)
    names = tuple(short_name(str(q.get("type", "?")), q) for q in entries)
    return Mixed(names, target if target in range(len(names)) else 0)


def _of_checkpoint(arrays: Mapping[str, np.ndarray], note: str) -> NetworkView:
    scope: Any = OrderedDict()
    with nn.parameter_scope("", scope):
        for name, array in arrays.items():
            nn.parameter.set_parameter(name, nn.Variable.from_numpy_array(array))
    tensors = find_quantized(scope)
    weights = [_weights(tensor) for tensor in tensors if tensor.is_weight]
    if not tensors:
        # A float model: everything with a kernel or a matrix.
        weights = [
            Weights(layer_name(name), array, None)
            for name, array in arrays.items()
            if name.endswith("/W") and array.ndim > 1
        ]
    mixed = {t.name: Mixed(short_names(t.mixture), t.target) for t in tensors}
    return NetworkView(None, tuple(weights), (), mixed, (note,) if arrays else ())


def _weights(tensor: QuantizedTensor) -> Weights:
    """A layer of a checkpoint, with its target quantizer's levels as they are now."""
    index, mixture = tensor.target, tensor.mixture
    quantizer, array = mixture.quantizers[index], tensor.weight.d
    encoded = None if quantizer.is_float else quantizer.encode(array, tensor.quantizer_state(index))
    after = DeployedTensor.of(
        tensor.weight_name,
        tensor.function,
        quantizer,
        {**mixture.to_json(), "target": index},
        tuple(float(a) for a in tensor.attention()),
        array if encoded is None else encoded.decode(),
        encoded,
    )
    return Weights(tensor.name, array, after)
