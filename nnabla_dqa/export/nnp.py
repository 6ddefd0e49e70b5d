"""Deployed networks as NNP files: NNabla opens them, this package proves their weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Dict, Optional

from nnabla_dqa._util.files import PathLike
from nnabla_dqa._version import __version__
from nnabla_dqa.export.deployed import Deployed, Deployment
from nnabla_dqa.export.metadata import (
    DEPLOYED,
    FORMAT,
    MALFORMED,
    packed_message,
    read_activations,
    read_tensor,
    reason,
    tensor_entries,
    tensor_name,
    tensor_to_json,
)
from nnabla_dqa.nnp_format.archive import METADATA, Archive
from nnabla_dqa.nnp_format.members import NNPError


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
        found = packed_message(archive, "use") or "is not a deployed file"
        raise NNPError(f"{archive.path}: {found}")
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
    activations = {a.name: a for a in read_activations(archive)}
    return Deployed(
        archive.definition,
        archive.parameters,
        tensors,
        str(metadata.get("select", "target")),
        metadata.get("source"),
        archive.others,
        activations=activations,
    )


def _metadata(deployed: Deployed) -> Dict[str, Any]:
    metadata = {
        "format": FORMAT,
        "kind": DEPLOYED,
        "nnabla_dqa": __version__,
        "select": deployed.select,
        "source": deployed.source,
        "tensors": [tensor_to_json(tensor) for tensor in deployed.tensors.values()],
    }
    if deployed.activations:
        metadata["activations"] = [a.to_json() for a in deployed.activations.values()]
    return metadata
