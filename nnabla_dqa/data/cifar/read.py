"""One file of CIFAR: records of the binary version, or a pickled batch of the python version."""

from __future__ import annotations

import io
import math
import pickle
from typing import Any, Dict

import numpy as np

from nnabla_dqa.data.base import DataError
from nnabla_dqa.data.cifar.layouts import PIXELS, DataSet, Part
from nnabla_dqa.messages import one_line

_ROW = math.prod(PIXELS)

_reconstruct: Any = np.core.multiarray._reconstruct  # type: ignore[attr-defined]

_ALLOWED: Dict[Any, Any] = {
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
    ("numpy.core.multiarray", "_reconstruct"): _reconstruct,
    ("numpy._core.multiarray", "_reconstruct"): _reconstruct,
}
"""All that a pickled array needs, under the names of NumPy 1 and NumPy 2."""


class _Unpickler(pickle.Unpickler):
    """Refuses every function and class but those of a NumPy array, so that no code is run."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ALLOWED:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which is not allowed")
        return _ALLOWED[module, name]


def read_binary(content: bytes, name: str, data_set: DataSet) -> Part:
    """Pixels and labels of a file of the binary version; of CIFAR-100's labels the fine ones.

    Args:
        content: Of the file.
        name: Of the file, for error messages.
        data_set: Which of the two.

    Raises:
        DataError: Empty, not a whole number of records, or a label out of range.
    """
    length = data_set.label_bytes + _ROW
    if not content or len(content) % length:
        raise DataError(
            f"{name}: {len(content)} bytes are not whole records of {length} bytes,"
            f" {data_set.name}'s; fetch the file again"
        )
    records = np.frombuffer(content, np.uint8).reshape(-1, length)
    labels = records[:, data_set.label_bytes - 1]
    if labels.max() >= data_set.classes:
        row = int(np.argmax(labels >= data_set.classes))
        raise DataError(
            f"{name}: record {row} has label {labels[row]}; {data_set.name}'s are 0 to"
            f" {data_set.classes - 1}"
        )
    return records[:, data_set.label_bytes :], labels


def read_python(content: bytes, name: str, data_set: DataSet) -> Part:
    """Pixels and labels of a file of the python version; of CIFAR-100's labels the fine ones.

    A pickle that asks for more than NumPy's arrays is refused. This keeps code from being run;
    it does not bound the memory that a file made for that purpose takes.

    Args:
        content: Of the file.
        name: Of the file, for error messages.
        data_set: Which of the two.

    Raises:
        DataError: Not such a pickle, a key is missing or holds something else, or a
            label is out of range.
    """
    try:
        # Python 2 wrote the published files; its strings come as bytes.
        batch = _Unpickler(io.BytesIO(content), encoding="bytes").load()
    # Nearly every exception can come out of a pickle that is damaged.
    except Exception as error:
        raise DataError(
            f"{name}: is not a pickle of plain data and arrays: {one_line(error)}"
        ) from None
    if not isinstance(batch, dict):
        raise DataError(
            f"{name}: holds a {type(batch).__name__}; {data_set.name}'s batches are dictionaries"
        )
    pixels = _entry(batch, "data", name, data_set)
    if not isinstance(pixels, np.ndarray) or pixels.dtype != np.uint8:
        found = pixels.dtype if isinstance(pixels, np.ndarray) else type(pixels).__name__
        raise DataError(f"{name}: 'data' is not an array of uint8, but {found}")
    if pixels.ndim != 2 or pixels.shape[1] != _ROW or not len(pixels):
        raise DataError(
            f"{name}: 'data' has shape {pixels.shape}; {data_set.name}'s is (images, {_ROW})"
        )
    return pixels, _labels(batch, len(pixels), name, data_set)


def _labels(batch: Dict[Any, Any], count: int, name: str, data_set: DataSet) -> np.ndarray:
    key = data_set.label_key
    labels = _entry(batch, key, name, data_set)
    if not isinstance(labels, list):
        raise DataError(f"{name}: {key!r} is a {type(labels).__name__}; a list is needed")
    if len(labels) != count:
        raise DataError(f"{name}: {key!r} holds {len(labels)} labels for {count} images")
    for row, label in enumerate(labels):
        if type(label) is not int:
            raise DataError(
                f"{name}: {key!r}, row {row}: a {type(label).__name__} is not a whole number"
            )
        if not 0 <= label < data_set.classes:
            raise DataError(
                f"{name}: {key!r}, row {row} has label {label}; {data_set.name}'s are 0 to"
                f" {data_set.classes - 1}"
            )
    return np.array(labels, np.uint8)


def _entry(batch: Dict[Any, Any], key: str, name: str, data_set: DataSet) -> Any:
    # Python 2 wrote bytes; files that Python 3 saved again have str.
    for written in (key.encode(), key):
        if written in batch:
            return batch[written]
    raise DataError(
        f"{name}: has no {key!r}; {data_set.name}'s batches have 'data' and {data_set.label_key!r}"
    )
