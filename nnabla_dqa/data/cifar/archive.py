"""CIFAR's published archives, read from start to end without unpacking them to disk."""

from __future__ import annotations

import gzip
import tarfile
import zlib
from pathlib import Path
from typing import Dict, Optional, Tuple

from nnabla_dqa._util.messages import one_line
from nnabla_dqa.data.base import DataError
from nnabla_dqa.data.cifar.layouts import LAYOUTS, Layout

# The largest published archive holds 186 MB. A hostile one holds gigabytes of zeros.
_MOST_BYTES = 2**30


def read_archive(path: Path, subset: str) -> Tuple[Layout, Dict[str, bytes]]:
    """Which data set a ``.tar.gz`` holds, and its files of one subset.

    Args:
        path: The archive.
        subset: ``"train"`` or ``"validation"``.

    Returns:
        The layout, and the contents by name of file. Files that the archive lacks are
        left out.

    Raises:
        DataError: Not a whole ``.tar.gz``, more than 1 GiB, without a file of CIFAR's, with
            those of two data sets or versions, or with one that is twice there or a link.
    """
    try:
        with gzip.open(path) as unzipped:
            stream = _Limited(unzipped, path)
            # Mode "r|" asks for nothing but read(), so nothing can send it back or around.
            with tarfile.open(fileobj=stream, mode="r|", bufsize=2**18) as archive:  # type: ignore[call-overload]
                found = _read_members(archive, path, subset)
            # gzip compares its checksum at the end.
            while stream.read(2**20):
                pass
            return found
    except DataError:
        raise
    # Headers with nonsense for numbers and text raise ValueError.
    except (tarfile.TarError, zlib.error, OSError, EOFError, ValueError) as error:
        raise DataError(f"{path}: is not a whole .tar.gz: {one_line(error)}") from None


def _read_members(
    archive: tarfile.TarFile, path: Path, subset: str
) -> Tuple[Layout, Dict[str, bytes]]:
    found: Optional[Layout] = None
    contents: Dict[str, bytes] = {}
    for member in archive:
        layout = _layout_of(member.name)
        if layout is None:
            continue
        if found is not None and layout is not found:
            raise DataError(
                f"{path}: holds {_title(found)} and {_title(layout)}; an archive of one is needed"
            )
        found = layout
        file = member.name.rpartition("/")[2]
        if file not in layout.files[subset]:
            continue
        if file in contents:
            raise DataError(f"{path}: holds {member.name} twice; fetch the archive again")
        contents[file] = _content(archive, member, path)
    if found is None:
        folders = ", ".join(layout.folder for layout in LAYOUTS)
        raise DataError(f"{path}: holds no files of CIFAR's; they are in one of {folders}")
    return found, contents


def _content(archive: tarfile.TarFile, member: tarfile.TarInfo, path: Path) -> bytes:
    name = f"{path}, {member.name}"
    plain = member.type in (tarfile.REGTYPE, tarfile.AREGTYPE) and not member.issparse()
    stream = archive.extractfile(member) if plain else None
    if stream is None:
        raise DataError(f"{name}: is not a plain file; fetch the archive again")
    return stream.read()


def _layout_of(member: str) -> Optional[Layout]:
    for layout in LAYOUTS:
        for names in layout.files.values():
            if member in {f"{layout.folder}/{name}" for name in names}:
                return layout
    return None


def _title(layout: Layout) -> str:
    return f"{layout.data_set.name}'s {layout.version} version"


class _Limited:
    """A stream that ends with an error where an archive of CIFAR's would long have ended."""

    def __init__(self, stream: gzip.GzipFile, path: Path) -> None:
        self._stream = stream
        self._path = path
        self._left = _MOST_BYTES

    def read(self, size: int) -> bytes:
        content = self._stream.read(size)
        self._left -= len(content)
        if self._left < 0:
            raise DataError(
                f"{self._path}: unpacks to more than {_MOST_BYTES} bytes; CIFAR's archives do not"
            )
        return content
