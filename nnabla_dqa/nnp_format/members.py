"""The members of an NNP: a zip, read under limits and written whole or not at all."""

from __future__ import annotations

import io
import os
import zipfile
from pathlib import Path
from typing import Dict, Iterable, Mapping, Optional, Tuple

from nnabla_dqa._util.files import PathLike, check_target, write_atomically
from nnabla_dqa._util.messages import one_line
from nnabla_dqa.nnp_format.limits import DAMAGE, Limit, unpack

VERSION = "nnp_version.txt"


class NNPError(ValueError):
    """A file is not an NNP that can be used; the message is one line and names the file."""


def read_members(path: Path, max_bytes: Optional[int] = None) -> Tuple[Dict[str, bytes], Limit]:
    """The members of an NNP by name, and the limit they were read under.

    Raises:
        NNPError: It is no zip, a member is broken, or they unpack to too much.
        OSError: It cannot be read.
    """
    if path.is_dir():
        raise NNPError(f"{path}: is a folder, not an .nnp file")
    if not path.exists():
        raise NNPError(f"{path}: there is no such file")
    size = path.stat().st_size
    limit = Limit.of(size, max_bytes)
    if size > limit.total:
        raise NNPError(
            f"{path}: has {size:,} bytes, more than the {limit.total:,} allowed; if you trust the "
            f"file, give a larger max_bytes"
        )
    # Read before it is taken apart: a disk that fails is not a broken file.
    content = path.read_bytes()
    try:
        archive = zipfile.ZipFile(io.BytesIO(content))
    except DAMAGE as error:
        message = f"{path}: not an NNP (a zip file), or cut off: {one_line(error)}"
        raise NNPError(message) from None
    with archive:
        try:
            return unpack(archive, limit), limit
        except ValueError as error:
            raise NNPError(f"{path}: {one_line(error)}") from None


def check_output(path: PathLike, inputs: Iterable[PathLike] = ()) -> Path:
    """``path`` if an NNP can be written there.

    Raises:
        NNPError: It does not end in ``.nnp``, or is one of ``inputs``.
        OSError: It is a folder, or its folder does not exist or cannot be written to.
    """
    if Path(path).suffix != ".nnp":
        raise NNPError(f"{path}: the name must end in .nnp, or NNabla will not open the file")
    for source in inputs:
        if os.path.exists(source) and os.path.exists(path) and os.path.samefile(source, path):
            raise NNPError(f"{path}: is an input, which is never overwritten; name another output")
    return check_target(path)


def write_members(path: PathLike, members: Mapping[str, bytes]) -> int:
    """Write a deflated zip of ``members`` to ``path``, atomically; returns its size in bytes.

    Raises:
        NNPError: ``path`` does not end in ``.nnp``.
        OSError: The file cannot be written.
    """
    check_output(path)
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
        for name, data in members.items():
            # A fixed date, so that equal networks give equal files.
            info = zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0))
            info.compress_type = zipfile.ZIP_DEFLATED
            info.external_attr = 0o644 << 16
            archive.writestr(info, data)
    data = buffer.getvalue()
    write_atomically(path, data)
    return len(data)
