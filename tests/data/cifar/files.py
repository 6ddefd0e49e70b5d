"""CIFAR's published folders and archives, small, with the pickles as Python 2 wrote them."""

from __future__ import annotations

import io
import struct
import tarfile

import numpy as np

from nnabla_dqa.data.cifar.layouts import LAYOUTS

BY_ARCHIVE = {layout.archive: layout for layout in LAYOUTS}


class Python2Pickle:
    """Writes protocol 2 like Python 2's cPickle: str as byte strings, the memo from 1."""

    def __init__(self):
        self._memo = 0

    def dumps(self, value):
        return b"\x80\x02" + self._write(value) + b"."

    def _put(self, content):
        self._memo += 1
        if self._memo < 256:
            return content + b"q" + bytes([self._memo])
        return content + b"r" + struct.pack("<I", self._memo)

    def _write(self, value):
        if isinstance(value, bytes):
            short = len(value) < 256
            head = b"U" + bytes([len(value)]) if short else b"T" + struct.pack("<i", len(value))
            return self._put(head + value)
        if isinstance(value, int):
            if 0 <= value < 256:
                return b"K" + bytes([value])
            return b"M" + struct.pack("<H", value) if 0 <= value < 65536 else self._long(value)
        if isinstance(value, list):
            head = self._put(b"]")
            return head + b"".join(self._batches(value))
        if isinstance(value, dict):
            head = self._put(b"}")
            return head + b"(" + b"".join(self._write(x) for p in value.items() for x in p) + b"u"
        if isinstance(value, np.ndarray):
            return self._array(value)
        raise TypeError(value)

    def _long(self, value):
        return b"J" + struct.pack("<i", value)

    def _batches(self, values):
        for start in range(0, len(values), 1000):
            yield b"(" + b"".join(map(self._write, values[start : start + 1000])) + b"e"

    def _array(self, array):
        parts = [self._put(b"cnumpy.core.multiarray\n_reconstruct\n")]
        parts += [self._put(b"cnumpy\nndarray\n"), self._put(b"K\x00\x85"), self._write(b"b")]
        parts += [self._put(b"\x87"), self._put(b"R"), b"(K\x01"]
        parts += [self._write(size) for size in array.shape]
        parts += [self._put({1: b"\x85", 2: b"\x86", 3: b"\x87"}[array.ndim])]
        parts += [self._put(b"cnumpy\ndtype\n"), self._write(array.dtype.str[1:].encode())]
        parts += [b"K\x00K\x01", self._put(b"\x87"), self._put(b"R")]
        order = array.dtype.str[:1].encode()
        parts += [b"(K\x03", self._write(order), b"NNN", self._long(-1), self._long(-1), b"K\x00"]
        by_columns = array.flags.f_contiguous and not array.flags.c_contiguous
        parts += [self._put(b"t"), b"b", b"\x88" if by_columns else b"\x89"]
        parts += [self._write(array.tobytes("A")), self._put(b"t"), b"b"]
        return b"".join(parts)


def batch_of(labels, pixels, layout):
    """A batch of the python version, as a dictionary in the published order."""
    count = len(labels)
    names = [f"image_{i}.png".encode() for i in range(count)]
    if layout.data_set.name == "CIFAR-10":
        return {
            b"batch_label": b"training batch 1 of 5",
            b"labels": labels[:, 0].tolist(),
            b"data": pixels,
            b"filenames": names,
        }
    return {
        b"filenames": names,
        b"batch_label": b"training batch 1 of 1",
        b"fine_labels": labels[:, 1].tolist(),
        b"coarse_labels": labels[:, 0].tolist(),
        b"data": pixels,
    }


def contents(layout, count=3):
    """Every file of a layout with what it holds, and the pixels and labels by subset.

    The samples are the same in both versions of a data set.
    """
    rng = np.random.RandomState(layout.data_set.classes)
    files, expected = {}, {}
    for subset, names in layout.files.items():
        parts = []
        for name in names:
            labels = rng.randint(0, 20, (count, layout.data_set.label_bytes)).astype(np.uint8)
            labels[:, -1] = rng.randint(0, layout.data_set.classes, count)
            pixels = rng.randint(0, 256, (count, 3072)).astype(np.uint8)
            parts.append((pixels.reshape(-1, 3, 32, 32), labels[:, -1]))
            if layout.version == "binary":
                files[name] = np.concatenate([labels, pixels], axis=1).tobytes()
            else:
                files[name] = Python2Pickle().dumps(batch_of(labels, pixels, layout))
        expected[subset] = [np.concatenate(part) for part in zip(*parts)]
    return files, expected


def write_folder(folder, files):
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return folder


def write_archive(path, *members):
    """A ``.tar.gz`` of pairs (name or TarInfo, bytes)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w:gz", compresslevel=1) as archive:
        for member, content in members:
            if not isinstance(member, tarfile.TarInfo):
                member = tarfile.TarInfo(member)
                member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


def members_of(layout, files):
    """As the published archives have them: the folder, then its files, and one that is not read."""
    folder = tarfile.TarInfo(layout.folder)
    folder.type = tarfile.DIRTYPE
    inner = [(f"{layout.folder}/{name}", content) for name, content in sorted(files.items())]
    return [(folder, b""), *inner, (f"{layout.folder}/readme.html", b"<html>")]
