"""Deployed networks as NNP files: NNabla opens them, this package proves their weights."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, Dict, List, Mapping, Optional

from nnabla_dqa._util.files import PathLike
from nnabla_dqa._util.messages import one_line
from nnabla_dqa.export.deployed import Deployed, Deployment
from nnabla_dqa.export.tensor import FLOAT_BITS, DeployedTensor, short_name
from nnabla_dqa.nnp_format.archive import METADATA, Archive, NNPError

FORMAT = 2
"""Version of the metadata that is written; older ones are read."""
FORMATS = (1, 2)
DEPLOYED = "deployed"
MALFORMED = (AttributeError, IndexError, KeyError, OverflowError, TypeError, ValueError)
"""What reading the metadata of a tensor raises if somebody else has written it."""


def write_nnp(deployed: Deployed, path: PathLike) -> Deployment:
    """Write a deployed network as an NNP of standard functions, atomically.

    The metadata in the member ``nnabla_dqa.json`` say of each quantized tensor
    on which levels it lies.

    Raises:
        NNPError: ``path`` does not end in ``.nnp``, or the network holds a
            function that this NNabla does not know.
        OSError: The file cannot be written.
    """
    archive = Archive(
        Path(path),
        deployed.definition,
        deployed.parameters,
        _metadata(deployed),
        deployed.others,
    )
    return Deployment(Path(path), archive.write(path), deployed)


def read_nnp(path: PathLike, max_bytes: Optional[int] = None) -> Deployed:
    """Read a deployed NNP back.

    Args:
        path: The file.
        max_bytes: As of :meth:`Archive.read`.

    Raises:
        NNPError: It is broken, not deployed, or its metadata cannot be read.
        OSError: It cannot be read.
    """
    return deployed_of(Archive.read(path, max_bytes))


def deployed_of(archive: Archive) -> Deployed:
    """The deployed network that a file holds; raises NNPError as :func:`read_nnp`."""
    metadata = archive.metadata or {}
    if metadata.get("kind") != DEPLOYED:
        raise NNPError(f"{archive.path}: is not a deployed file")
    tensors = {}
    for entry in tensor_entries(archive):
        try:
            tensor = read_tensor(entry, archive)
        except MALFORMED as error:
            raise NNPError(
                f"{archive.path}: {METADATA}: the quantization of {tensor_name(entry)} cannot be "
                f"read: {reason(error)}"
            ) from None
        tensors[tensor.name] = tensor
    return Deployed(
        archive.definition,
        archive.parameters,
        tensors,
        str(metadata.get("select", "target")),
        metadata.get("source"),
        archive.others,
    )


def check_format(archive: Archive) -> None:
    """Raise NNPError if the metadata are of a version that is not read."""
    found = (archive.metadata or {}).get("format")
    if isinstance(found, bool) or found not in FORMATS:
        raise NNPError(
            f"{archive.path}: {METADATA} has format {found!r}; this version of nnabla_dqa reads "
            f"{' and '.join(map(str, FORMATS))}"
        )


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
    return DeployedTensor.from_json(entry, parameter.array)


def tensor_name(entry: Any) -> str:
    """What messages call the tensor of an entry, however malformed that is."""
    return str(entry.get("name")) if isinstance(entry, Mapping) else "?"


def reason(error: BaseException) -> str:
    """Why an entry cannot be read, from one of :data:`MALFORMED`."""
    return f"key {error} is missing" if isinstance(error, KeyError) else one_line(error)


def _metadata(deployed: Deployed) -> Dict[str, Any]:
    from nnabla_dqa import __version__

    return {
        "format": FORMAT,
        "kind": DEPLOYED,
        "nnabla_dqa": __version__,
        "select": deployed.select,
        "source": deployed.source,
        "tensors": [tensor.to_json() for tensor in deployed.tensors.values()],
    }


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
