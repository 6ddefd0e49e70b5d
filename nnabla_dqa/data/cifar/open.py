"""CIFAR-10 and CIFAR-100 as they are published: binary or python version, unpacked or not."""

from __future__ import annotations

import hashlib
import warnings
from functools import partial
from pathlib import Path
from typing import Callable, Dict, Iterable, Optional

import numpy as np

from nnabla_dqa.data.arrays import ArrayData
from nnabla_dqa.data.base import DataError, MissingSubsetError
from nnabla_dqa.data.cifar.archive import read_archive
from nnabla_dqa.data.cifar.layouts import LAYOUTS, PIXELS, DataSet, Layout, Part
from nnabla_dqa.data.cifar.read import read_binary, read_python

_READERS: Dict[str, Callable[[bytes, str, DataSet], Part]] = {
    "binary": read_binary,
    "python": read_python,
}

# The first byte of every pickle of protocol 2 or later.
_PICKLE = b"\x80"


def find_cifar(folder: Path) -> Dict[str, Callable[[str, Optional[float]], ArrayData]]:
    """Each CIFAR data set in ``folder``: by its name, what opens a subset of it at a scale.

    It can be there as files, as the folder that the archive unpacks to, or as the archive.
    Where there are several of one data set, which are all the same, files and folders come
    before archives, and the binary version comes before the python version.
    """
    found: Dict[str, Callable[[str, Optional[float]], ArrayData]] = {}
    for layout in LAYOUTS:
        for place in (folder, folder / layout.folder):
            if _holds(place, layout):
                found.setdefault(layout.data_set.name, partial(open_cifar, place, layout))
    for layout in LAYOUTS:
        if (folder / layout.archive).is_file():
            opener = partial(open_cifar_archive, folder / layout.archive)
            found.setdefault(layout.data_set.name, opener)
    return found


def open_cifar(
    folder: Path, layout: Layout, subset: str, scale: Optional[float] = None
) -> ArrayData:
    """``x`` of shape (3, 32, 32), pixels, and ``y`` of shape (1,), for CIFAR-100 the fine labels.

    Args:
        folder: With the files.
        layout: One of ``LAYOUTS``.
        subset: ``"train"`` or ``"validation"``.
        scale: What pixels are multiplied by; default 1/255.

    Raises:
        DataError: A file is missing, is damaged, or has a label out of range.
    """
    read = _READERS[layout.version]
    paths = [folder / name for name in layout.files[subset]]
    parts = (read(_content(path, layout, subset), str(path), layout.data_set) for path in paths)
    return _join(parts, scale, str(folder))


def open_cifar_archive(path: Path, subset: str, scale: Optional[float] = None) -> ArrayData:
    """The same out of a ``.tar.gz``, of which nothing is written to disk.

    Warns where the MD5 checksum is not that of the published archive: a packed copy of one's
    own is read all the same, and so is noticed an archive that somebody else has changed.

    Args:
        path: The archive; its files tell which it is, not its name.
        subset: ``"train"`` or ``"validation"``.
        scale: As for :func:`open_cifar`.

    Raises:
        DataError: As for :func:`open_cifar`, or not a whole archive of one data set.
    """
    layout, contents = read_archive(path, subset)
    for name in layout.files[subset]:
        if name not in contents:
            raise MissingSubsetError(
                f"{path}: {layout.folder}/{name} is missing; {layout.describe(subset)}"
            )
    if (checksum := _md5(path)) != layout.md5:
        # The stack is: here, open_data's function for files or folders, open_data, its caller.
        warnings.warn(
            f"{path}: is not the published {layout.archive} (its MD5 is {checksum}, the published"
            f" one's {layout.md5}); if you did not pack it yourself, fetch it again",
            UserWarning,
            stacklevel=4,
        )
    read = _READERS[layout.version]
    parts = (
        read(contents.pop(name), f"{path}, {layout.folder}/{name}", layout.data_set)
        for name in layout.files[subset]
    )
    return _join(parts, scale, str(path))


def _md5(path: Path) -> str:
    digest = hashlib.md5(usedforsecurity=False)
    with path.open("rb") as stream:
        while piece := stream.read(2**20):
            digest.update(piece)
    return digest.hexdigest()


def _join(parts: Iterable[Part], scale: Optional[float], source: str) -> ArrayData:
    pixels, labels = zip(*parts)
    x = np.concatenate(pixels).reshape(-1, *PIXELS)
    return ArrayData({"x": x, "y": np.concatenate(labels)}, scale, source)


def _content(path: Path, layout: Layout, subset: str) -> bytes:
    if not path.is_file():
        raise MissingSubsetError(f"{path}: is missing; {layout.describe(subset)}")
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error})") from None


def _holds(place: Path, layout: Layout) -> bool:
    paths = (place / name for names in layout.files.values() for name in names)
    return any(path.is_file() and _is_named(path, layout) for path in paths)


def _is_named(path: Path, layout: Layout) -> bool:
    # Many a folder has a file named "test" that is none of CIFAR-100's.
    if layout.version == "binary" or path.parent.name == layout.folder:
        return True
    with path.open("rb") as stream:
        return stream.read(1) == _PICKLE
