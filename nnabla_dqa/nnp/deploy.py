"""From a converted and trained NNP to a small one: weights on their grids, mixtures gone."""

from __future__ import annotations

import copy
import dataclasses
import itertools
from pathlib import Path
from typing import Any, Dict, Iterable, List, Mapping, Optional, Set, Tuple

import numpy as np

from nnabla_dqa._util.files import PathLike
from nnabla_dqa._version import __version__
from nnabla_dqa.graph.deploy import FORMAT, DeployedLayer, Deployment
from nnabla_dqa.layers.report import LayerReport, Report, short_name
from nnabla_dqa.nnp.archive import VERSION, Archive, NNPError, check_output, keep_only
from nnabla_dqa.nnp.bn_reestimate import estimate_statistics
from nnabla_dqa.nnp.expand import state_path
from nnabla_dqa.nnp.file import CONVERTED, DEPLOYED, NetworkFile
from nnabla_dqa.nnp.file_report import file_report
from nnabla_dqa.nnp.fold_bn import Fold, fold_normalization
from nnabla_dqa.nnp.inspect import running_networks
from nnabla_dqa.nnp.layers import FileLayer
from nnabla_dqa.nnp.live import NORMALIZATION, Program
from nnabla_dqa.nnp.metadata import claim, distinct_values, grid_of
from nnabla_dqa.nnp.parameters import Parameter
from nnabla_dqa.quantization import Encoded, Quantizer

_RANDOM = ("Dropout", "ImageAugmentation", "RandomCrop", "RandomErase", "RandomFlip", "RandomShift")
"""What belongs into networks that train."""


@dataclasses.dataclass(frozen=True)
class FileDeployment(Deployment):
    """What :func:`deploy_file` wrote; ``messages`` tell what a user should know."""

    networks: Tuple[str, ...] = ()
    messages: Tuple[str, ...] = ()


def deploy_file(
    source: PathLike,
    target: PathLike,
    choose: str = "lowest",
    fold: bool = False,
    whole: bool = False,
    allow_untrained: bool = False,
    samples: Optional[Iterable[Mapping[str, np.ndarray]]] = None,
) -> FileDeployment:
    """Write a converted NNP with the quantized weights baked in, in standard functions only.

    Kept are the networks that an executor runs (all that compute no loss, if
    there is none), the executors and what they need; optimizers, data sets,
    training networks and other members of the file are left out.

    Args:
        source: A converted NNP, trained.
        target: The file to write, replaced atomically if it exists.
        choose: ``"lowest"``: each layer's lowest bit width; ``"argmax"``: the
            quantizer with the largest share of attention.
        fold: Fold batch normalization into the layers before it. Their grids
            are per channel then; outputs change by rounding only.
        whole: Keep all networks and sections; not with ``fold``.
        allow_untrained: Deploy a file that was not trained after it was
            converted (post-training quantization).
        samples: Batches of equal size, ``{input: array}``, from which the running
            statistics of batch normalization are computed anew.

    Raises:
        NNPError: The file is not converted or not trained, has NaN or infinity
            (names the parameter), or no network to keep.
        ValueError: ``choose`` is something else, or ``fold`` and ``whole`` together.
        OSError: A file cannot be read or written.
    """
    if choose not in ("lowest", "argmax"):
        raise ValueError(f"deploy: choose={choose!r} is neither 'lowest' nor 'argmax'")
    if fold and whole:
        raise ValueError("deploy: fold needs weights of one network; whole keeps several")
    check_output(target, [source])
    file = NetworkFile.read(source)
    _check_deployable(file, allow_untrained)
    rows = {layer.name: file_report(file, layer) for layer in file.quantized}
    messages: List[str] = []
    if choose == "lowest" and file.is_trained:
        messages += Report(tuple(rows.values())).messages()
    archive = _kept(file, whole, messages)
    if samples is not None:
        statistics = _statistics(file, archive, samples, choose)
        if not statistics:
            messages.append("no batch normalization whose statistics could be computed anew")
        for name, array in statistics.items():
            archive.parameters[name] = Parameter(array, False)
    chosen = {n: row.argmax if choose == "argmax" else row.target for n, row in rows.items()}
    deployed, notes = _bake(archive, file, rows, chosen, fold, messages)
    _drop_unused(archive)
    archive.metadata = _metadata(file, choose, notes)
    size = archive.write(target)
    count = sum(p.array.size for p in archive.parameters.values())
    names = tuple(network.name for network in archive.definition.network)
    return FileDeployment(Path(target), size, count, tuple(deployed), names, tuple(messages))


def _bake(
    archive: Archive,
    file: NetworkFile,
    rows: Mapping[str, LayerReport],
    chosen: Mapping[str, int],
    fold: bool,
    messages: List[str],
) -> Tuple[List[DeployedLayer], List[Dict[str, Any]]]:
    """Put the quantized weights into ``archive``; what was put there and what it claims."""
    layers = [layer for layer in file.quantized if layer.weight in archive.parameters]
    quantizers = {
        layer.weight: file.mixtures[layer.name].quantizers[chosen[layer.name]] for layer in layers
    }
    grids = {
        layer.weight: grid_of(
            quantizers[layer.weight],
            archive.parameters[layer.weight].array,
            file.quantizer_state(layer, chosen[layer.name]),
        )
        for layer in layers
    }
    folds = _fold(archive, quantizers, messages) if fold else {}
    deployed: List[DeployedLayer] = []
    notes: List[Dict[str, Any]] = []
    for layer in layers:
        gain = _gain(layer, folds.get(layer.weight))
        grid = _scaled(grids[layer.weight], gain)
        weights = grid.decode() if grid else archive.parameters[layer.weight].array * gain
        archive.parameters[layer.weight] = Parameter(weights)
        quantizer = quantizers[layer.weight]
        row, mixture = rows[layer.name], file.mixtures[layer.name]
        notes.append(claim(layer.weight, quantizer, mixture, row, grid, weights))
        values = distinct_values(weights, notes[-1]["channel_axis"])
        deployed.append(
            DeployedLayer(rows[layer.name], short_name(quantizer), quantizer.bits, values)
        )
    return deployed, notes


def _check_deployable(file: NetworkFile, allow_untrained: bool) -> None:
    """Raise NNPError unless ``file`` is converted, trained (or that is allowed) and finite."""
    path = file.archive.path
    if file.kind == DEPLOYED:
        raise NNPError(f"{path}: is deployed already")
    if file.kind != CONVERTED:
        raise NNPError(f"{path}: is not converted; run nnabla-dqa convert and train first")
    if not file.is_trained and not allow_untrained:
        raise NNPError(
            f"{path}: was not trained since it was converted; train it, or say that this is meant "
            f"(--allow-untrained)"
        )
    for name, (array, _) in file.archive.parameters.items():
        if not np.isfinite(array).all():
            raise NNPError(f"{path}: parameter {name} holds NaN or infinity; nothing was written")


def _kept(file: NetworkFile, whole: bool, messages: List[str]) -> Archive:
    """The archive of what is kept, its mixtures not written out and their state gone."""
    definition = copy.deepcopy(file.archive.definition)
    others = dict(file.archive.others)
    _set_to_run(definition, messages)
    if not whole:
        names = running_networks(definition)
        if not names:
            raise NNPError(
                f"{file.archive.path}: has no executor and trains every network "
                f"({', '.join(file.networks)}); keep all with --whole"
            )
        left = [n.name for n in definition.network if n.name not in names]
        keep_only(definition.network, lambda network: network.name in names)
        for section in ("optimizer", "monitor", "dataset", "training_config"):
            definition.ClearField(section)
        unknown = [name for name in others if name != VERSION]
        others = {VERSION: others[VERSION]} if VERSION in others else {}
        parts = [f"networks {', '.join(left)}"] if left else []
        parts += [f"members {', '.join(unknown)}"] if unknown else []
        if parts:
            messages.append(f"left out, not needed to run: {'; '.join(parts)}")
    scopes = tuple(f"{state_path(layer.weight)}/" for layer in file.quantized)
    parameters = {
        name: parameter
        for name, parameter in file.archive.parameters.items()
        if not name.startswith(scopes) and name != "dqa/step"
    }
    return dataclasses.replace(
        file.archive,
        definition=definition,
        parameters=parameters,
        others=others,
        parameter_member="parameter.protobuf",
    )


def _set_to_run(definition: Any, messages: List[str]) -> None:
    """Running statistics in the networks that are run; names what else in them is random."""
    runs = running_networks(definition)
    for network in definition.network:
        if network.name not in runs:
            continue
        for function in network.function:
            field = NORMALIZATION.get(function.type)
            if field is not None and getattr(function, field).batch_stat:
                getattr(function, field).batch_stat = False
                messages.append(
                    f"network {network.name}: {function.name} normalizes by running statistics "
                    f"now, because the network is run"
                )
            if function.type in _RANDOM:
                messages.append(
                    f"network {network.name}: {function.name} ({function.type}) is kept: its "
                    f"outputs are random"
                )


def _statistics(
    file: NetworkFile,
    archive: Archive,
    samples: Iterable[Mapping[str, np.ndarray]],
    choose: str,
) -> Dict[str, np.ndarray]:
    rest = iter(samples)
    first = next(rest, None)
    if not first:
        raise ValueError("deploy: samples holds no batch")
    size = len(next(iter(first.values())))
    network = [*running_networks(archive.definition), archive.definition.network[0].name][0]
    batches = itertools.chain([first], rest)
    return estimate_statistics(Program(file), network, batches, size, choose)


def _fold(
    archive: Archive, quantizers: Mapping[str, Quantizer], messages: List[str]
) -> Dict[str, Fold]:
    """Fold what can be folded; the folds by the weights' names."""
    folds: List[Fold] = []
    if len(archive.definition.network) > 1:
        messages.append("no batch normalization folded: several networks share the weights")
    else:
        network = archive.definition.network[0]
        outputs = {v.variable_name for e in archive.definition.executor for v in e.output_variable}
        used = {name for function in network.function for name in function.input}
        outputs |= {n for f in network.function for n in f.output if n not in used}

        def fits(weight: str, channel_axis: int) -> bool:
            # A grid can have ranges along one axis only.
            quantizer = quantizers.get(weight)
            if quantizer is None or quantizer.axis is None:
                return True
            ndim = archive.parameters[weight].array.ndim
            return quantizer.axis % ndim == channel_axis

        before = set(archive.parameters)
        folds = fold_normalization(network, archive.parameters, outputs, fits)
        for name in [name for name in archive.parameters if name not in before]:
            for executor in archive.definition.executor:
                if executor.parameter_variable:
                    executor.parameter_variable.add(variable_name=name)
        listed = ", ".join(f"{fold.normalization} into {fold.weight}" for fold in folds)
        messages.append(f"folded: {listed}" if folds else "no batch normalization could be folded")
    return {fold.weight: fold for fold in folds}


def _gain(layer: FileLayer, fold: Optional[Fold]) -> np.ndarray:
    """What folding multiplies the weights by; broadcasts against them."""
    shape = [1] * len(layer.shape)
    if fold is None:
        return np.ones(shape, np.float32)
    shape[fold.channel_axis] = fold.gain.size
    return fold.gain.reshape(shape)


def _scaled(grid: Optional[Encoded], gain: np.ndarray) -> Optional[Encoded]:
    if grid is None or grid.scale is None or grid.offset is None:
        return None
    return Encoded(grid.codes, grid.scale * gain, grid.offset * gain)


def _drop_unused(archive: Archive) -> None:
    """Take out what no kept function uses: variables, parameters, and their mention."""
    used: Set[str] = set()
    for network in archive.definition.network:
        used |= {name for f in network.function for name in (*f.input, *f.output)}
    for network in archive.definition.network:
        keep_only(network.variable, lambda variable: variable.name in used)
    names = {network.name for network in archive.definition.network}
    keep_only(archive.definition.executor, lambda executor: executor.network_name in names)
    for section in (*archive.definition.executor, *archive.definition.optimizer):
        keep_only(section.parameter_variable, lambda listed: listed.variable_name in used)
    archive.parameters = {k: v for k, v in archive.parameters.items() if k in used}


def _metadata(file: NetworkFile, choose: str, notes: List[Dict[str, Any]]) -> Dict[str, Any]:
    before = file.archive.metadata or {}
    return {
        "format": FORMAT,
        "kind": DEPLOYED,
        "nnabla_dqa": __version__,
        "choose": choose,
        "source": before.get("source"),
        "layers": notes,
    }
