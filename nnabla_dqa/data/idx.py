"""MNIST's idx files, and others of that form such as Fashion-MNIST, gzipped or not.

Big-endian: magic number, number of items, for images rows and columns, then bytes.
"""

from __future__ import annotations

import math
import struct
import zlib
from gzip import GzipFile
from pathlib import Path
from typing import BinaryIO, Optional, Tuple, Union

import numpy as np

from nnabla_dqa.data.arrays import DEFLATE_LIMIT, ArrayData
from nnabla_dqa.data.base import DataError, MissingSubsetError

IMAGES, LABELS = 0x803, 0x801

PREFIXES = {"train": "train", "validation": "t10k"}


def looks_like_idx(path: Path) -> bool:
    """Whether a file is an idx file by its name, or by its first bytes."""
    if any(part in path.name for part in ("-ubyte", "idx3", "idx1")):
        return True
    try:
        with _open(path) as stream:
            return stream.read(4) in (struct.pack(">I", IMAGES), struct.pack(">I", LABELS))
    except (OSError, EOFError, zlib.error):
        return False


def images_of_folder(folder: Path, subset: str) -> Optional[Path]:
    """The images file of a folder in MNIST's layout; None where a folder has another one.

    Raises:
        DataError: The folder has the other subset's images, but not this one's.
    """
    for name in (subset, *PREFIXES):
        found = _plain_or_gz(folder / f"{PREFIXES[name]}-images-idx3-ubyte")
        if found is None:
            continue
        if name == subset:
            return found
        raise MissingSubsetError(
            f"{folder}: has {found.name}, but not {PREFIXES[subset]}-images-idx3-ubyte"
            f" or its .gz, which the {subset} subset is read from"
        )
    return None


def open_idx(images: Path, scale: Optional[float] = None) -> ArrayData:
    """``x`` of shape (1, rows, columns), pixels, and ``y`` of shape (1,).

    Args:
        images: The images file; the labels lie beside it under the same name
            with ``labels`` for ``images`` and ``idx1`` for ``idx3``.
        scale: What pixels are multiplied by; default 1/255.

    Raises:
        DataError: A file is missing, damaged, truncated or too long, or the
            numbers of images and labels differ.
    """
    plain = images.name[:-3] if images.name.endswith(".gz") else images.name
    expected = images.with_name(plain.replace("images", "labels").replace("idx3", "idx1"))
    labels = None if expected.name == plain else _plain_or_gz(expected)
    pixels, shape = _read(images, IMAGES)
    if labels is None:
        beside = f"{expected.name} or its .gz" if expected.name != plain else "a labels file"
        raise DataError(f"{images}: its labels, {beside}, are not beside it")
    classes, _ = _read(labels, LABELS)
    if len(classes) != shape[0]:
        raise DataError(
            f"{labels}: has {len(classes)} labels, and {images.name} has {shape[0]} images"
        )
    x = pixels.reshape(shape[0], 1, *shape[1:])
    return ArrayData({"x": x, "y": classes}, scale, str(images))


def _plain_or_gz(path: Path) -> Optional[Path]:
    for candidate in (path, path.with_name(path.name + ".gz")):
        if candidate.is_file():
            return candidate
    return None


def _open(path: Path) -> Union[BinaryIO, GzipFile]:
    # By content and not by name: downloads lose and gain .gz on the way.
    with path.open("rb") as stream:
        zipped = stream.read(2) == b"\x1f\x8b"
    return GzipFile(path) if zipped else path.open("rb")


def _read(path: Path, magic: int) -> Tuple[np.ndarray, Tuple[int, ...]]:
    """The bytes after the header, and the counts in it."""
    axes = magic & 0xFF
    try:
        with _open(path) as stream:
            header = stream.read(4 + 4 * axes)
            if len(header) >= 4 and header[:4] != struct.pack(">I", magic):
                kind = "images" if magic == IMAGES else "labels"
                raise DataError(
                    f"{path}: begins with 0x{header[:4].hex()}; an idx file of {kind} begins with"
                    f" {magic:#010x}"
                )
            if len(header) < 4 + 4 * axes:
                raise DataError(f"{path}: ends within its header; fetch the file again")
            counts = struct.unpack(f">{axes}I", header[4:])
            expected = math.prod(counts)
            # A header may lie about the counts. No more is asked for than the file can hold.
            most = path.stat().st_size * (DEFLATE_LIMIT if isinstance(stream, GzipFile) else 1)
            body = stream.read(min(expected, most) + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path}: cannot be read ({error}); fetch the file again") from None
    counted = " x ".join(map(str, counts))
    if not expected:
        raise DataError(f"{path}: holds nothing; its header counts {counted}")
    if len(body) != expected:
        wrong = "more" if len(body) > expected else f"only {len(body)}"
        raise DataError(
            f"{path}: its header counts {counted} = {expected} bytes, and there are {wrong};"
            " fetch the file again"
        )
    return np.frombuffer(body, np.uint8), counts
