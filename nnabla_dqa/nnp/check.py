"""Proving what a deployed NNP claims about its weights."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, List, Optional, Tuple

import numpy as np

from nnabla_dqa._util.files import PathLike
from nnabla_dqa._util.tables import format_table
from nnabla_dqa.layers.report import short_name
from nnabla_dqa.nnp.archive import Archive
from nnabla_dqa.nnp.file import DEPLOYED
from nnabla_dqa.nnp.layers import discover
from nnabla_dqa.nnp.metadata import distinct_values
from nnabla_dqa.nnp.parameters import Parameter
from nnabla_dqa.quantization import FullPrecision, quantizer_from_json


@dataclasses.dataclass(frozen=True)
class CheckedLayer:
    """A layer's claim and what was found; ``fault`` is empty if the claim holds."""

    weight: str
    quantizer: str
    levels: int
    values: int
    fault: str


@dataclasses.dataclass(frozen=True)
class Check:
    """What :func:`check_file` found; ``str()`` of it is a table and a verdict."""

    path: Path
    layers: Tuple[CheckedLayer, ...]
    faults: Tuple[str, ...]
    runs: Tuple[str, ...]
    unclaimed: Tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        """Whether every claim holds and no parameter holds NaN or infinity."""
        return not self.faults

    def __str__(self) -> str:
        head = ("weights", "quantizer", "levels", "distinct values", "on its grid")
        rows = [
            (
                row.weight,
                row.quantizer,
                f"{row.levels:,}" if row.levels < 2**16 else "float",
                f"{row.values:,}",
                "NO" if row.fault else "yes",
            )
            for row in self.layers
        ]
        table = [format_table([head, *rows])] if rows else []
        verdict = "every claim holds, no NaN or infinity" if self.ok else "NOT as it claims"
        lines = [f"no claim, float: {name}" for name in self.unclaimed]
        lines += [f"fault: {fault}" for fault in self.faults]
        return "\n".join([*table, *self.runs, *lines, f"{self.path}: {verdict}"])


def check_file(path: PathLike) -> Check:
    """Check a deployed NNP: its weights against the grids it states, all parameters for NaN.

    A weight is on its grid if it equals ``scale * code + offset`` bit for bit
    for a whole number ``0 <= code < levels``, with the scale and offset of
    its tensor or channel that the file states.

    Raises:
        NNPError: It is no NNP, or broken.
        OSError: It cannot be read.
    """
    archive = Archive.read(path)
    notes = archive.metadata or {}
    faults = []
    layers = []
    if notes.get("kind") != DEPLOYED:
        faults.append("the file makes no claim: nnabla-dqa has not deployed it")
    else:
        for note in notes["layers"]:
            row = _check_layer(note, archive.parameters)
            layers.append(row)
            if row.fault:
                faults.append(f"{row.weight}: {row.fault}")
        if not layers:
            faults.append("the file claims no layer")
    for name, (array, _) in archive.parameters.items():
        if not np.isfinite(array).all():
            faults.append(f"parameter {name} holds NaN or infinity")
    claimed = {row.weight for row in layers}
    found, _ = discover(archive.definition, archive.parameters)
    unclaimed = tuple(layer.weight for layer in found if layer.weight not in claimed)
    return Check(Path(path), tuple(layers), tuple(faults), tuple(_runs(archive)), unclaimed)


def _check_layer(note: Any, parameters: Mapping[str, Parameter]) -> CheckedLayer:
    if not isinstance(note, Mapping):
        return CheckedLayer("?", "?", 0, 0, f"its claim is no mapping but {note!r}")
    weight = str(note.get("weight"))
    try:
        quantizer = quantizer_from_json(note["quantizer"])
        parameter = parameters.get(weight)
        if parameter is None:
            return CheckedLayer(
                weight, short_name(quantizer), quantizer.levels, 0, "is not in the file"
            )
        axis = note["channel_axis"]
        values = distinct_values(parameter.array, axis)
        fault = ""
        if note["levels"] != quantizer.levels:
            fault = f"claims {note['levels']} levels, {quantizer} has {quantizer.levels}"
        elif not isinstance(quantizer, FullPrecision):
            fault = _fault(parameter.array, quantizer.levels, axis, note, values)
        return CheckedLayer(weight, short_name(quantizer), quantizer.levels, values, fault)
    except (IndexError, KeyError, TypeError, ValueError) as error:
        return CheckedLayer(weight, "?", 0, 0, f"its claim cannot be read: {error}")


def _fault(
    weights: np.ndarray,
    levels: int,
    axis: Optional[int],
    note: Mapping[str, Any],
    values: int,
) -> str:
    if values > levels:
        return f"{values} distinct values, {levels} allowed"
    if note.get("scale") is None or note.get("offset") is None:
        rows = [weights] if axis is None else np.moveaxis(weights, axis, 0)
        listed = note.get("values")
        if listed is None or len(listed) != len(rows):
            return "the file states no grid for it"
        known = all(np.isin(row, np.array(own, np.float32)).all() for row, own in zip(rows, listed))
        return "" if known else "has values that the file does not list"
    shape = [1] * weights.ndim
    if axis is not None:
        shape[axis] = -1
    scale, offset = (np.array(note[k], np.float32).reshape(shape) for k in ("scale", "offset"))
    safe = np.where(scale == 0, np.float32(1), scale)
    codes = np.clip(np.rint((weights - offset) / safe), 0, levels - 1)
    # In float32, as it was made.
    wrong = np.argwhere(codes.astype(np.float32) * scale + offset != weights)
    if len(wrong):
        at = tuple(int(i) for i in wrong[0])
        return f"{len(wrong)} weights off the grid, the first at {at}: {weights[at]!r}"
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
