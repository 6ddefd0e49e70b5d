"""The quantization metadata of a deployed NNP: on which levels each of its tensors lies.

They are the JSON in the member ``nnabla_dqa.json``, with an entry for each tensor.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any, Dict, List, Mapping, NamedTuple, Tuple

import numpy as np

from nnabla_dqa._util.messages import one_line
from nnabla_dqa.export.activation import DeployedActivation
from nnabla_dqa.export.quantizer_info import QuantizerInfo, short_name
from nnabla_dqa.export.tensor import DeployedTensor
from nnabla_dqa.nnp_format.archive import METADATA, Archive
from nnabla_dqa.nnp_format.members import NNPError
from nnabla_dqa.quantization.encoding import FLOAT_BITS, RowLayout

FORMAT = 2
"""Version of the metadata that is written; older ones are read."""
FORMATS = (1, 2)
DEPLOYED = "deployed"
PACKED = "packed"
"""Kinds of files: with weights on levels, and with packed weights that the networks unpack."""
MALFORMED = (AttributeError, IndexError, KeyError, OverflowError, TypeError, ValueError)
"""What reading the metadata of a tensor raises if somebody else has written it."""


def check_format(archive: Archive) -> None:
    """Raise NNPError if the metadata are of a version that is not read."""
    found = (archive.metadata or {}).get("format")
    if isinstance(found, bool) or found not in FORMATS:
        raise NNPError(
            f"{archive.path}: {METADATA} has format {found!r}; this version of nnabla_dqa reads "
            f"{' and '.join(map(str, FORMATS))}"
        )


def packed_message(archive: Archive, verb: str) -> str:
    """What is said of a file with packed weights, behind its name; '' if it is none.

    ``verb`` is what can be done with the file it was made from instead.
    """
    metadata = archive.metadata or {}
    if metadata.get("kind") != PACKED:
        return ""
    source = metadata.get("source")
    name = source.get("file") if isinstance(source, Mapping) else None
    which = f"{name}, the deployed file it was made from" if name else "the deployed file"
    return f"its weights are packed by nnabla-dqa export; {verb} {which}"


def tensor_entries(archive: Archive) -> List[Any]:
    """What the metadata of a deployed file say of each tensor, in the present format.

    Raises:
        NNPError: The format is not known.
    """
    check_format(archive)
    metadata = archive.metadata or {}
    if metadata["format"] == 1:
        return [_of_format_1(entry) for entry in metadata.get("layers", [])]
    return list(metadata.get("tensors", []))


def read_tensor(entry: Any, archive: Archive) -> DeployedTensor:
    """The tensor that an entry describes; raises one of :data:`MALFORMED`."""
    if not isinstance(entry, Mapping):
        raise TypeError(f"it is no mapping but {entry!r}")
    parameter = archive.parameters.get(str(entry["name"]))
    if parameter is None:
        raise ValueError("the parameter is not in the file")
    return tensor_from_json(entry, parameter.array)


def read_activations(archive: Archive) -> List[DeployedActivation]:
    """The quantized activations of a deployed file.

    Raises:
        NNPError: The file says something of one that cannot be read.
    """
    made = []
    for entry in (archive.metadata or {}).get("activations", []):
        try:
            made.append(DeployedActivation.from_json(entry))
        except MALFORMED as error:
            raise NNPError(
                f"{archive.path}: {METADATA}: the quantization of {tensor_name(entry)} cannot be "
                f"read: {reason(error)}"
            ) from None
    return made


class PackedTensor(NamedTuple):
    """What a file with packed weights says of a tensor; its values only the networks compute.

    ``scope`` is that of the parameters that it is computed from, '' if it is a parameter itself.
    """

    name: str
    quantizer: QuantizerInfo
    shape: Tuple[int, ...]
    groups: int
    attention: Tuple[float, ...]
    scope: str

    @property
    def bits(self) -> int:
        """Bits of the quantizer."""
        return self.quantizer.bits


def packed_tensors(archive: Archive) -> List[PackedTensor]:
    """The quantized tensors of a file with packed weights.

    Raises:
        NNPError: The file says something of one that cannot be read.
    """
    networks = archive.definition.network
    shapes = {v.name: tuple(v.shape.dim) for network in networks for v in network.variable}
    shapes.update({name: array.shape for name, (array, _) in archive.parameters.items()})
    made = []
    for entry in tensor_entries(archive):
        try:
            name = str(entry["name"])
            made.append(
                PackedTensor(
                    name,
                    QuantizerInfo.from_json(entry["quantizer"]),
                    shapes[name],
                    RowLayout.of(shapes[name], entry["channel_axis"]).rows,
                    tuple(float(a) for a in entry["attention"]),
                    str(entry["packed"]),
                )
            )
        except MALFORMED as error:
            raise NNPError(
                f"{archive.path}: {METADATA}: the quantization of {tensor_name(entry)} cannot be "
                f"read: {reason(error)}"
            ) from None
    return made


def packed_to_json(tensor: DeployedTensor, scope: str) -> Dict[str, Any]:
    """What a file with packed weights says of a tensor."""
    return {
        "name": tensor.name,
        "quantizer": tensor.quantizer.to_json(),
        "channel_axis": tensor.channel_axis,
        "attention": list(tensor.attention),
        "packed": scope,
    }


def tensor_to_json(tensor: DeployedTensor) -> Dict[str, Any]:
    """What a file says of a tensor, beside its values."""
    entry: Dict[str, Any] = {
        "name": tensor.name,
        "function": tensor.function,
        "quantizer": tensor.quantizer.to_json(),
        "channel_axis": tensor.channel_axis,
        "attention": list(tensor.attention),
        "mixture": dict(tensor.mixture),
    }
    # Python writes float32 values as the doubles they are: they come back exactly.
    if tensor.levels is not None:
        entry["levels"] = [[float(v) for v in row] for row in tensor.levels]
    elif tensor.scale is not None and tensor.offset is not None:
        entry["scale"] = [float(v) for v in tensor.scale.ravel()]
        entry["offset"] = [float(v) for v in tensor.offset.ravel()]
    return entry


def tensor_from_json(entry: Mapping[str, Any], weights: np.ndarray) -> DeployedTensor:
    """The tensor of which a file says ``entry``, with these values.

    Raises:
        KeyError, TypeError, ValueError: The entry is not what :func:`tensor_to_json` gives.
    """
    axis = entry["channel_axis"]
    layout = RowLayout.of(weights.shape, axis)
    tensor = DeployedTensor(
        str(entry["name"]),
        str(entry["function"]),
        weights,
        QuantizerInfo.from_json(entry["quantizer"]),
        layout.axis,
        tuple(float(a) for a in entry["attention"]),
        dict(entry["mixture"]),
    )
    if tensor.quantizer.is_float:
        return tensor
    if "levels" in entry:
        levels = tuple(np.array(row, np.float32) for row in entry["levels"])
        wrong = [row for row in levels if not 1 <= row.size <= tensor.quantizer.levels]
        if len(levels) != layout.rows or wrong:
            raise ValueError(f"key 'levels' is not {layout.rows} sets of levels")
        return dataclasses.replace(tensor, levels=levels)
    scale, offset = (_column(entry[key], layout) for key in ("scale", "offset"))
    return dataclasses.replace(tensor, scale=scale, offset=offset)


def tensor_name(entry: Any) -> str:
    """What messages call the tensor of an entry, however malformed that is."""
    return str(entry.get("name")) if isinstance(entry, Mapping) else "?"


def reason(error: BaseException) -> str:
    """Why an entry cannot be read, from one of :data:`MALFORMED`."""
    return f"key {error} is missing" if isinstance(error, KeyError) else one_line(error)


def _of_format_1(entry: Any) -> Any:
    """An entry as nnabla_dqa 0.1.0 before format 2 wrote it, in the present form."""
    if not isinstance(entry, Mapping) or not isinstance(entry.get("quantizer"), Mapping):
        return entry
    arguments = dict(entry["quantizer"])
    kind = str(arguments.pop("type", ""))
    levels = entry.get("levels", 0)
    is_count = isinstance(levels, int) and levels > 0
    least = math.ceil(math.log2(levels)) if is_count else 0
    new = {key: entry[key] for key in ("function", "channel_axis", "attention") if key in entry}
    new["name"] = entry.get("weight")
    new["quantizer"] = {
        "type": kind,
        "name": short_name(kind, arguments),
        "bits": arguments.get("bits", min(max(1, least), FLOAT_BITS)),
        "levels": levels,
        "arguments": arguments,
    }
    new["mixture"] = {key: entry[key] for key in ("quantizers", "mixing") if key in entry}
    if entry.get("scale") is not None and entry.get("offset") is not None:
        new.update(scale=entry["scale"], offset=entry["offset"])
    elif "values" in entry:
        new["levels"] = entry["values"]
    return new


def _column(values: Any, layout: RowLayout) -> np.ndarray:
    column = np.array(values, np.float32)
    if column.shape != (layout.rows,):
        raise ValueError(f"{column.size} numbers for {layout.rows} ranges")
    return layout.broadcastable(column)
