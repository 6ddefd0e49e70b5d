"""From a converted and trained NNP to a small one: weights on their levels, mixtures gone."""

from __future__ import annotations

import copy
import itertools
from typing import Dict, Iterable, List, Mapping, Optional, Tuple

import numpy as np

from nnabla_dqa._util.files import PathLike
from nnabla_dqa._util.renamed import renamed
from nnabla_dqa.export.deployed import Deployed, Deployment
from nnabla_dqa.export.metadata import DEPLOYED, packed_message
from nnabla_dqa.export.nnp import deployed_of, write_nnp
from nnabla_dqa.export.tensor import DeployedTensor
from nnabla_dqa.layers.report import LayerReport, Report
from nnabla_dqa.layers.scopes import checked_selection
from nnabla_dqa.nnp.activations import fix_activations
from nnabla_dqa.nnp.bn_reestimate import estimate_statistics
from nnabla_dqa.nnp.file import CONVERTED, NetworkFile
from nnabla_dqa.nnp.fold_bn import fold_deployed
from nnabla_dqa.nnp.inspect import running_networks
from nnabla_dqa.nnp.layers import FileLayer
from nnabla_dqa.nnp.live import Program
from nnabla_dqa.nnp.prune import check_run, drop_unused, kept
from nnabla_dqa.nnp.summary import activation_report, file_report
from nnabla_dqa.nnp_format.members import NNPError, check_output
from nnabla_dqa.nnp_format.parameters import Parameter


@renamed(choose="select")
def deploy_file(
    source: PathLike,
    target: PathLike,
    select: str = "target",
    fold: bool = False,
    whole: bool = False,
    allow_untrained: bool = False,
    samples: Optional[Iterable[Mapping[str, np.ndarray]]] = None,
    max_bytes: Optional[int] = None,
) -> Deployment:
    """Write a converted NNP with its quantized weights, in standard functions only.

    :func:`deployed_from` says what is kept of the file.

    Args:
        source: A converted NNP, trained; with ``fold`` also a deployed one.
        target: The file to write, replaced atomically if it exists.
        select: ``"target"``: each layer's target, the lowest bit width;
            ``"argmax"``: the quantizer with the largest attention.
        fold: Fold batch normalization into the layers before it.
        whole: Keep all networks and sections; not with ``fold``.
        allow_untrained: Deploy a file that was not trained after it was
            converted (post-training quantization).
        samples: Batches of equal size, ``{input: array}``, from which the running
            statistics of batch normalization are computed anew.
        max_bytes: What ``source`` may unpack to; the default is that of
            :meth:`nnabla_dqa.nnp_format.archive.Archive.read`.

    Raises:
        NNPError, ValueError: As of :func:`deployed_from`.
        OSError: A file cannot be read or written.

    Examples:
        >>> import nnabla_dqa as dqa
        >>> _ = dqa.convert_file("lenet.nnp", "lenet_dqa.nnp", "minmax:8")
        >>> result = dqa.deploy_file("lenet_dqa.nnp", "lenet_8bit.nnp", allow_untrained=True)
        >>> [(row.layer, row.values) for row in result.layers]  # different values of 36 and 1,440
        [('conv1/conv', ...), ('fc/affine', ...)]
    """
    select = checked_selection(select, "deploy")
    _check_options(fold, whole)
    check_output(target, [source])
    file = NetworkFile.read(source, max_bytes)
    return write_nnp(deployed_from(file, select, fold, whole, allow_untrained, samples), target)


def deployed_from(
    file: NetworkFile,
    select: str = "target",
    fold: bool = False,
    whole: bool = False,
    allow_untrained: bool = False,
    samples: Optional[Iterable[Mapping[str, np.ndarray]]] = None,
) -> Deployed:
    """A converted file as a deployed network in memory, for a writer of :mod:`nnabla_dqa.export`.

    Kept are the networks that an executor runs (all that compute no loss, if
    there is none), the executors and what they need; optimizers, data sets,
    training networks and other members of the file are left out.

    Args:
        file: Converted and trained. A deployed one is accepted with ``fold``:
            its batch normalization is folded, from the levels that it states.
        select: ``"target"``: each layer's target, the lowest bit width, or what a budget has
            chosen for it; ``"argmax"``: the quantizer with the largest attention.
        fold: Fold batch normalization into the layers before it. Their levels
            are per channel then; outputs change by rounding only.
        whole: Keep all networks and sections; not with ``fold``.
        allow_untrained: Deploy a file that was not trained after it was
            converted (post-training quantization).
        samples: Batches of equal size, ``{input: array}``, from which the running
            statistics of batch normalization are computed anew.

    Raises:
        NNPError: The file is not converted or not trained, has a quantizer
            whose class is not known, has NaN or infinity (names the
            parameter), no network to keep, or no quantized layer in those that are run.
        ValueError: ``select`` is something else, or ``fold`` and ``whole`` together.
    """
    select = checked_selection(select, "deploy")
    _check_options(fold, whole)
    if file.kind == DEPLOYED and fold and select == "target" and samples is None:
        _check_finite(file)
        deployed = copy.deepcopy(deployed_of(file.archive))
    else:
        deployed = _quantized(file, select, whole, allow_untrained, samples)
    messages = list(deployed.messages)
    if fold:
        fold_deployed(deployed, messages)
    drop_unused(deployed)
    deployed.messages = tuple(messages)
    return deployed


def _check_options(fold: bool, whole: bool) -> None:
    if fold and whole:
        raise ValueError("deploy: fold needs weights of one network; whole keeps several")


def _quantized(
    file: NetworkFile,
    select: str,
    whole: bool,
    allow_untrained: bool,
    samples: Optional[Iterable[Mapping[str, np.ndarray]]],
) -> Deployed:
    """The networks to keep of a converted file, with quantized weights."""
    _check_deployable(file, allow_untrained)
    if not whole:
        check_run(file)
    rows = {layer.name: file_report(file, layer) for layer in file.quantized}
    inputs = [layer for layer in file.quantized if file.assigned[layer.name].activations]
    entering = {layer.name: activation_report(file, layer) for layer in inputs}
    messages: List[str] = []
    if select == "target" and file.is_trained:
        messages += Report((*rows.values(), *entering.values())).messages()
    deployed = kept(file, whole, messages)
    deployed.select = select
    if samples is not None:
        statistics = _statistics(file, deployed, samples)
        if not statistics:
            messages.append("no batch normalization whose statistics could be computed anew")
        for name, array in statistics.items():
            deployed.parameters[name] = Parameter(array, False)
    for layer in file.quantized:
        if layer.weight in deployed.parameters:
            row = rows[layer.name]
            tensor, weights = _tensor(
                file, layer, row, row.argmax if select == "argmax" else row.target
            )
            deployed.tensors[layer.weight] = tensor
            deployed.parameters[layer.weight] = Parameter(weights)
    for layer in inputs:
        row = entering[layer.name]
        index = row.argmax if select == "argmax" else row.target
        fix_activations(file, layer, row, index, deployed)
    deployed.messages = tuple(messages)
    return deployed


def _tensor(
    file: NetworkFile, layer: FileLayer, row: LayerReport, index: int
) -> Tuple[DeployedTensor, np.ndarray]:
    """A layer's weights as one of its quantizers makes them."""
    mixture = file.mixtures[layer.name]
    quantizer = mixture.quantizers[index]
    weights = file.archive.parameters[layer.weight].array
    state = file.quantizer_state(layer, index)
    encoded = None if quantizer.is_float else quantizer.encode(weights, state)
    weights = weights if encoded is None else encoded.decode()
    tensor = DeployedTensor.of(
        layer.weight,
        layer.function,
        quantizer,
        {**mixture.to_json(), "target": row.target},
        tuple(row.attention),
        weights,
        encoded,
    )
    return tensor, weights


def _check_deployable(file: NetworkFile, allow_untrained: bool) -> None:
    """Raise NNPError unless ``file`` is converted, trained (or that is allowed) and finite."""
    path = file.archive.path
    packed = packed_message(file.archive, "use")
    if packed:
        raise NNPError(f"{path}: {packed}")
    if file.kind == DEPLOYED:
        raise NNPError(f"{path}: is deployed already (batch normalization can still be folded)")
    if file.kind != CONVERTED:
        raise NNPError(f"{path}: is not converted; run nnabla-dqa convert and train first")
    file.check_quantizers()
    if not file.is_trained and not allow_untrained:
        raise NNPError(
            f"{path}: was not trained since it was converted; train it, or say that this is meant "
            f"(--allow-untrained)"
        )
    _check_finite(file)


def _check_finite(file: NetworkFile) -> None:
    for name, (array, _) in file.archive.parameters.items():
        if not np.isfinite(array).all():
            raise NNPError(
                f"{file.archive.path}: parameter {name} holds NaN or infinity; nothing was written"
            )


def _statistics(
    file: NetworkFile, deployed: Deployed, samples: Iterable[Mapping[str, np.ndarray]]
) -> Dict[str, np.ndarray]:
    rest = iter(samples)
    first = next(rest, None)
    if not first:
        raise ValueError("deploy: samples holds no batch")
    size = len(next(iter(first.values())))
    network = [*running_networks(deployed.definition), deployed.networks[0]][0]
    batches = itertools.chain([first], rest)
    return estimate_statistics(Program(file), network, batches, size, deployed.select)
