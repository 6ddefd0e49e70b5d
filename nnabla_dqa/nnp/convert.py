"""NNP in, NNP out: the weights of its layers go through DQA mixtures."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, List, Mapping, Optional, Set, Tuple

from nnabla_dqa._util.files import PathLike
from nnabla_dqa._util.tables import format_table
from nnabla_dqa.export.metadata import DEPLOYED, PACKED
from nnabla_dqa.layers.report import short_name
from nnabla_dqa.layers.rules import Assignment, Rules, RulesLike
from nnabla_dqa.mixing.mixture import rule_warnings
from nnabla_dqa.nnp.file import CONVERTED, NetworkFile
from nnabla_dqa.nnp.live import NORMALIZATION, normalization_of
from nnabla_dqa.nnp_format.members import NNPError, check_output


class NothingToConvertError(NNPError):
    """A file has no layer whose weights can be quantized."""


@dataclasses.dataclass(frozen=True)
class Conversion:
    """What :func:`convert_file` wrote; ``str()`` of it tells it layer by layer.

    ``messages`` name what was skipped, and every changed
    BatchNormalization.
    """

    path: Path
    file: NetworkFile = dataclasses.field(repr=False)
    file_bytes: int
    messages: Tuple[str, ...]

    def __str__(self) -> str:
        head = ("layer", "function", "shape", "weights", "rule", "quantizers", "activations")
        rows = [
            (
                layer.name,
                layer.function,
                "x".join(map(str, layer.shape)),
                f"{layer.size:,}",
                self.file.assigned[layer.name].rule,
                " ".join(short_name(q) for q in self.file.mixtures[layer.name].quantizers),
                _activations(self.file, layer.name),
            )
            for layer in self.file.quantized
        ]
        table: List[Tuple[str, ...]] = [head, *rows]
        if not any(row[-1] != "-" for row in rows):
            table = [row[:-1] for row in table]
        networks = ", ".join(self.file.networks)
        return "\n".join(
            [
                format_table(table),
                *self.messages,
                f"{self.path}: {self.file_bytes:,} bytes; networks: {networks}",
            ]
        )


def convert_file(
    source: PathLike,
    target: PathLike,
    rules: Optional[RulesLike] = None,
    max_bytes: Optional[int] = None,
) -> Conversion:
    """Rewrite an NNP so that its layers' weights go through mixtures of quantizers.

    All networks of the file are rewritten over the shared parameters, with
    standard functions only: the result opens in any NNabla. Weights start as
    they are in the file; weights shared by functions or networks get one
    attention. Names, inputs, outputs, executors, optimizers, data sets,
    training configuration and other members of the file are kept.
    What rules say of activations is written beside them: it holds where this package
    trains and deploys the file; any other NNabla runs the converted file with float activations.
    BatchNormalization is set to batch statistics in networks that an optimizer
    of the file trains, and to running statistics in those that an executor or
    monitor runs; what had to be changed is reported.

    Args:
        source: The file to read; it is not changed.
        target: The file to write, replaced atomically if it exists.
        rules: A notation such as ``"minmax:2,4,8"`` (the default), quantizers,
            a list of :class:`Rule`, or :class:`Rules`.
        max_bytes: What ``source`` may unpack to; the default is that of
            :meth:`nnabla_dqa.nnp_format.archive.Archive.read`.

    Raises:
        NNPError: The file is broken, or converted, deployed or packed already.
        NothingToConvertError: It has no layer; nothing is written.
        ValueError: A rule matches no layer or two match the same.
        OSError: A file cannot be read or written.

    Examples:
        >>> import nnabla_dqa as dqa
        >>> result = dqa.convert_file("lenet.nnp", "lenet_dqa.nnp", [dqa.Rule("fc*", "sawb:2,4,8")])
        >>> result.path.name
        'lenet_dqa.nnp'
    """
    check_output(target, [source])
    file = NetworkFile.read(source, max_bytes)
    if file.kind == CONVERTED:
        raise NNPError(
            f"{source}: is converted already (layer {file.quantized[0].name} has "
            f"{file.mixtures[file.quantized[0].name]}); convert the file it came from"
        )
    if file.kind in (DEPLOYED, PACKED):
        raise NNPError(
            f"{source}: is a {file.kind} file, whose weights are quantized for good; convert the "
            f"float file it came from"
        )
    if not file.layers:
        left = "; ".join(str(entry) for entry in file.skipped)
        raise NothingToConvertError(
            f"{source}: no layer to convert, nothing written" + (f" ({left})" if left else "")
        )
    assigned = Rules.of(rules or ()).assign(file.layers)
    _check_inputs(source, assigned)
    result = file.converted(assigned)
    messages = [f"skipped: {entry}" for entry in file.skipped]
    try:
        messages += _set_statistics(result.archive.definition)
    except ValueError as error:
        raise NNPError(f"{source}: {error}") from None
    messages += [
        f"network {network.name}: a {function.type} has no name; NNabla cannot compute the network"
        for network in result.archive.definition.network
        for function in network.function
        if not function.name
    ]
    if not result.rewritten:
        messages.append("all layers stay float: there is nothing to train or to deploy small")
    messages += rule_warnings(result.all_mixtures)
    if any(assignment.activations for assignment in result.assigned.values()):
        messages.append(
            "activations are quantized where nnabla-dqa trains and deploys the file; any other "
            "NNabla runs the converted file with float ones"
        )
    size = result.save(target)
    return Conversion(Path(target), result, size, tuple(messages))


def _check_inputs(source: PathLike, assigned: Mapping[str, Assignment]) -> None:
    """Raise NNPError for quantizers that need to know how many channels enter a layer."""
    for name, assignment in assigned.items():
        inputs = assignment.activations
        for q in () if inputs is None else inputs.quantizers:
            if q.rows_are_channels:
                raise NNPError(
                    f"{source}: layer {name}: {q} looks at the channels of what enters the layer; "
                    f"it is for model code and for recipes with a model, not for files"
                )


def _activations(file: NetworkFile, name: str) -> str:
    assigned = file.assigned[name]
    if assigned.input_of:
        return f"as {assigned.input_of}"
    mixture = assigned.activations
    return "-" if mixture is None else " ".join(short_name(q) for q in mixture.quantizers)


def _set_statistics(definition: Any) -> List[str]:
    """Batch statistics where the file trains, running statistics where it only runs."""
    frozen: Set[str] = set()
    trained: Set[str] = set()
    for optimizer in definition.optimizer:
        trained.add(optimizer.network_name)
        for listed in optimizer.parameter_variable:
            if not listed.learning_rate_multiplier:
                frozen.add(listed.variable_name)
    runs = {section.network_name for section in (*definition.executor, *definition.monitor)}
    messages = []
    for network in definition.network:
        if network.name not in trained | runs:
            continue
        for function in network.function:
            field = NORMALIZATION.get(function.type)
            # Frozen scale and shift: normalization that its author does not train.
            own = normalization_of(function)
            learned = [] if own is None else [n for n in own[:2] if n is not None]
            if field is None or (learned and all(name in frozen for name in learned)):
                continue
            arguments = getattr(function, field)
            wanted = network.name in trained
            if arguments.batch_stat != wanted:
                arguments.batch_stat = wanted
                kind = "batch" if wanted else "running"
                messages.append(
                    f"network {network.name}: {function.name} normalizes by {kind} statistics now, "
                    f"because the network {'is trained' if wanted else 'is only run'}"
                )
    return messages
