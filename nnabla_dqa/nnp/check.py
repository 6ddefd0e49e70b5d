"""Proving that the weights of a deployed NNP lie on the levels that it states."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, List, Optional, Tuple

import numpy as np

from nnabla_dqa._util.files import PathLike
from nnabla_dqa._util.registry import UnknownTypeError
from nnabla_dqa._util.renamed import renamed
from nnabla_dqa._util.tables import format_table
from nnabla_dqa.export.metadata import (
    DEPLOYED,
    MALFORMED,
    packed_message,
    packed_tensors,
    read_tensor,
    reason,
    tensor_entries,
    tensor_name,
)
from nnabla_dqa.export.quantizer_info import QuantizerInfo, short_name
from nnabla_dqa.nnp.layers import discover
from nnabla_dqa.nnp_format.archive import Archive
from nnabla_dqa.quantization import quantizer_from_json

_NOT_CHECKED = "not checked: "
_NOT_DEPLOYED = f"{_NOT_CHECKED}nnabla-dqa has not deployed it; run deploy first"
_NOTHING = "nothing to check: the file names no quantized tensor"


@dataclasses.dataclass(frozen=True)
class CheckedTensor:
    """A tensor of the metadata and what was found; ``fault`` is empty if it is as the file says.

    Of a float one (``is_float``) nothing can be proved.
    """

    weight: str
    quantizer: str
    levels: int
    values: int
    fault: str
    is_float: bool = False


@renamed(unclaimed="not_quantized")
@dataclasses.dataclass(frozen=True)
class Check:
    """What :func:`check_file` found; ``str()`` of it is a table and a verdict.

    ``not_quantized`` are weights of which the file says nothing.
    """

    path: Path
    layers: Tuple[CheckedTensor, ...]
    faults: Tuple[str, ...]
    runs: Tuple[str, ...]
    not_quantized: Tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        """Whether there are quantized tensors, all is as the file says, and nothing is NaN."""
        return not self.faults

    def __str__(self) -> str:
        head = ("weights", "quantizer", "levels", "distinct values", "on its grid")
        rows = [
            (
                row.weight,
                row.quantizer,
                "float" if row.is_float else f"{row.levels:,}",
                f"{row.values:,}",
                "NO" if row.fault else "-" if row.is_float else "yes",
            )
            for row in self.layers
        ]
        table = [format_table([head, *rows])] if rows else []
        verdict = "verified: the quantized weights are on their grids, no NaN or infinity"
        if not self.ok:
            verdict = "NOT as its metadata say"
            general = (f for f in self.faults if f.startswith(_NOT_CHECKED) or f == _NOTHING)
            verdict = next(general, verdict)
        lines = [f"not quantized, float: {name}" for name in self.not_quantized]
        lines += [f"fault: {fault}" for fault in self.faults if fault != verdict]
        return "\n".join([*table, *self.runs, *lines, f"{self.path}: {verdict}"])


def check_file(path: PathLike, max_bytes: Optional[int] = None) -> Check:
    """Check a deployed NNP: its weights against the levels it states, all parameters for NaN.

    A weight is on its grid if it equals ``scale * code + offset`` bit for bit
    for a whole number ``0 <= code < levels``, with the scale and offset of
    its tensor or channel that the file states, or is one of the levels that
    it lists. The class of the quantizer need not be known. Float tensors are
    listed; a file without quantized ones is not ``ok``.

    Args:
        path: The file.
        max_bytes: What it may unpack to; the default is that of
            :meth:`nnabla_dqa.nnp_format.archive.Archive.read`.

    Raises:
        NNPError: It is no NNP, or broken.
        OSError: It cannot be read.

    Examples:
        >>> import nnabla_dqa as dqa
        >>> _ = dqa.convert_file("lenet.nnp", "lenet_dqa.nnp", "minmax:8")
        >>> _ = dqa.deploy_file("lenet_dqa.nnp", "lenet_8bit.nnp", allow_untrained=True)
        >>> dqa.check_file("lenet_8bit.nnp").ok
        True
        >>> dqa.check_file("lenet.nnp").ok  # not quantized: nothing is proved
        False
    """
    archive = Archive.read(path, max_bytes)
    faults = []
    layers = []
    checked = set()
    packed = packed_message(archive, "check")
    if packed:
        faults.append(_NOT_CHECKED + packed)
        checked = {tensor.name for tensor in packed_tensors(archive)}
    elif (archive.metadata or {}).get("kind") != DEPLOYED:
        faults.append(_NOT_DEPLOYED)
    else:
        layers = [_check_tensor(entry, archive) for entry in tensor_entries(archive)]
        faults += [f"{row.weight}: {row.fault}" for row in layers if row.fault]
        if all(row.is_float for row in layers):
            faults.append(_NOTHING)
    for name, (array, _) in archive.parameters.items():
        if not np.isfinite(array).all():
            faults.append(f"parameter {name} holds NaN or infinity")
    checked |= {row.weight for row in layers}
    found, _ = discover(archive.definition, archive.parameters)
    others = tuple(layer.weight for layer in found if layer.weight not in checked)
    return Check(Path(path), tuple(layers), tuple(faults), tuple(_runs(archive)), others)


def _check_tensor(entry: Any, archive: Archive) -> CheckedTensor:
    try:
        tensor = read_tensor(entry, archive)
    except MALFORMED as error:
        fault = f"its quantization cannot be read: {reason(error)}"
        return CheckedTensor(tensor_name(entry), "?", 0, 0, fault)
    info = tensor.quantizer
    fault = _disagreement(info) or tensor.fault()
    return CheckedTensor(tensor.name, info.name, info.levels, tensor.values, fault, info.is_float)


def _disagreement(info: QuantizerInfo) -> str:
    """What is wrong with the description of a quantizer, as far as its class is known; else ''."""
    named = short_name(info.type, info.arguments)
    try:
        known = quantizer_from_json({"type": info.type, **info.arguments})
        if (known.levels, known.bits) != (info.levels, info.bits):
            return (
                f"the file says {info.levels} levels of {info.bits} bits, {known} has "
                f"{known.levels} of {known.bits}"
            )
    except UnknownTypeError:
        pass
    except ValueError as error:
        return f"its quantizer cannot be read: {reason(error)}"
    if info.name != named:
        return f"the file calls the quantizer {info.name!r}, what it describes is {named}"
    return ""


def _runs(archive: Archive) -> List[str]:
    definition = archive.definition
    lines = []
    for executor in definition.executor:
        inputs = ", ".join(v.variable_name for v in executor.data_variable) or "no input"
        outputs = ", ".join(v.variable_name for v in executor.output_variable) or "no output"
        lines.append(f"runs: network {executor.network_name} ({inputs} -> {outputs})")
    if not lines:
        names = ", ".join(network.name for network in definition.network)
        lines.append(f"no executor; networks: {names}")
    return lines
