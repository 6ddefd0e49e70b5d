"""Deployed networks in the formats of other engines, by the ending of the name."""

from __future__ import annotations

from pathlib import Path
from typing import Optional, Union

from nnabla_dqa._util.files import PathLike, check_target
from nnabla_dqa.export.deployed import Deployed
from nnabla_dqa.export.errors import ExportError
from nnabla_dqa.export.metadata import DEPLOYED, packed_message
from nnabla_dqa.export.nnb import SUFFIX as NNB
from nnabla_dqa.export.nnb import NnbFile, write_nnb
from nnabla_dqa.export.nnp import deployed_of
from nnabla_dqa.export.onnx.sizes import OnnxFile
from nnabla_dqa.export.onnx.write import AUTO, FLOAT, check_arithmetic, write_onnx
from nnabla_dqa.export.onnx.write import SUFFIX as ONNX
from nnabla_dqa.export.packed.write import SUFFIX as NNP
from nnabla_dqa.export.packed.write import PackedFile, Source, write_packed
from nnabla_dqa.nnp_format.archive import Archive
from nnabla_dqa.nnp_format.members import check_output

Exported = Union[OnnxFile, NnbFile, PackedFile]
"""What was written; ``str()`` of it is a table of its bytes."""
_ENDINGS = (ONNX, NNB, NNP)


def export_file(
    source: PathLike,
    target: PathLike,
    network: Optional[str] = None,
    max_bytes: Optional[int] = None,
    arithmetic: str = AUTO,
) -> Exported:
    """Write a deployed NNP in another engine's format, atomically.

    Args:
        source: A deployed NNP.
        target: Ends in ``.onnx``: ONNX with packed weights, as
            :func:`nnabla_dqa.export.onnx.write.write_onnx` says; in ``.nnb``: for
            NNabla's C runtime, as :func:`nnabla_dqa.export.nnb.write_nnb` says; or in ``.nnp``:
            for NNabla, with packed weights, as
            :func:`nnabla_dqa.export.packed.write.write_packed` says. Replaced if it exists.
        network: Which network; default: that of the first executor. An NNP keeps all.
        max_bytes: What ``source`` may unpack to; the default is that of
            :meth:`nnabla_dqa.nnp_format.archive.Archive.read`.
        arithmetic: ``"auto"``, ``"float"``, ``"integer"`` or ``"qdq"``, as of
            :func:`nnabla_dqa.export.onnx.write.write_onnx`; NNB and NNP are float only.

    Returns:
        What was written; ``str()`` of it is a table of its bytes by part.

    Raises:
        NNPError: ``source`` is no NNP, not deployed, or the same file as ``target``.
        ValueError: ``arithmetic`` is something else.
        ExportError: ``target`` has another ending, or the network cannot be
            written (names the function or parameter), or ``network`` is given for an NNP.
        OnnxMissingError: The package ``onnx`` is not installed.
        OSError: A file cannot be read or written.

    Examples:
        >>> import nnabla_dqa as dqa
        >>> _ = dqa.convert_file("lenet.nnp", "lenet_dqa.nnp", "minmax:8")
        >>> _ = dqa.deploy_file("lenet_dqa.nnp", "lenet_8bit.nnp", allow_untrained=True)
        >>> file = dqa.export_file("lenet_8bit.nnp", "lenet_8bit.onnx")
    """
    check_export_output(target, arithmetic)
    if Path(target).suffix == NNP:
        check_output(target, [source])
    archive = Archive.read(source, max_bytes)
    packed = packed_message(archive, "export")
    if packed:
        raise ExportError(f"{source}: {packed}")
    kind = (archive.metadata or {}).get("kind")
    if kind != DEPLOYED:
        found = "is not quantized" if kind is None else f"is {kind}, not deployed; deploy it first"
        raise ExportError(
            f"{source}: {found}; export writes what nnabla-dqa deploy has written (convert, "
            f"train, deploy, export)"
        )
    try:
        deployed = deployed_of(archive)
        return _write(deployed, target, network, arithmetic, Source.of(archive.path))
    except ExportError as error:
        raise ExportError(f"{source}: {error}") from None


def write_deployed(
    deployed: Deployed,
    path: PathLike,
    network: Optional[str] = None,
    arithmetic: str = AUTO,
) -> Exported:
    """Write a deployed network in memory; raises as :func:`export_file`."""
    check_export_output(path, arithmetic)
    return _write(deployed, path, network, arithmetic)


def _write(
    deployed: Deployed,
    path: PathLike,
    network: Optional[str],
    arithmetic: str,
    source: Optional[Source] = None,
) -> Exported:
    if Path(path).suffix == ONNX:
        return write_onnx(deployed, path, network, arithmetic)
    if Path(path).suffix == NNB:
        return write_nnb(deployed, path, network)
    if network is not None:
        raise ExportError(f"{path}: an .nnp keeps all networks; network {network!r} is not chosen")
    return write_packed(deployed, path, source)


def check_export_output(path: PathLike, arithmetic: str = AUTO) -> Path:
    """``path`` if a file of a known format, computed so, can be written there.

    Raises:
        ValueError: There is no such arithmetic.
        ExportError: Its ending is that of no known format, or of one that has not the arithmetic.
        OSError: It is a folder, or its folder does not exist or cannot be written to.
    """
    check_arithmetic(arithmetic)
    suffix = Path(path).suffix
    if suffix not in _ENDINGS:
        raise ExportError(
            f"{path}: {suffix or 'a name without ending'} is no format that is written; known: "
            f"{', '.join(_ENDINGS)}"
        )
    if suffix != ONNX and arithmetic not in (AUTO, FLOAT):
        raise ExportError(f"{path}: arithmetic {arithmetic!r} is for .onnx; {suffix} is float")
    return check_target(path)
