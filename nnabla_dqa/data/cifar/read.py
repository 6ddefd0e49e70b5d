"""One file of CIFAR: records of the binary version, or a pickled batch of the python version."""

from __future__ import annotations

import io
import math
import pickle
from typing import Any, Dict

import numpy as np

from nnabla_dqa._util.messages import one_line
from nnabla_dqa.data.base import DataError
from nnabla_dqa.data.cifar.layouts import PIXELS, DataSet, Part

_ROW = math.prod(PIXELS)


class _Uint8:
    """Stands for NumPy's type. Its state is byte order and alignment, which bytes do not have."""

    def __init__(self, code: object, *_: object) -> None:
        if code not in (b"u1", "u1"):
            raise pickle.UnpicklingError(f"an array of {code!a:.20}; uint8 is needed")

    def __setstate__(self, state: object) -> None:
        pass


class _Array:
    """Stands for NumPy's array, whose own way to take its state trusts what the file says.

    Raw bytes in the place of objects, for instance, become pointers.
    """

    values: np.ndarray

    def __init__(self, *_: object) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        _, shape, _, by_columns, content = state
        order: Any = "F" if by_columns else "C"
        self.values = np.frombuffer(content, np.uint8).reshape(shape, order=order)


_ALLOWED: Dict[Any, Any] = {
    ("numpy", "ndarray"): None,
    ("numpy", "dtype"): _Uint8,
    ("numpy.core.multiarray", "_reconstruct"): _Array,
    ("numpy._core.multiarray", "_reconstruct"): _Array,
}
"""All that a pickled array asks for, under the names of NumPy 1 and NumPy 2."""


class _Unpickler(pickle.Unpickler):
    """Refuses every function and class but those of an array of uint8, so that no code is run."""

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

    A pickle that asks for more than arrays of uint8 is refused. This keeps code from being run;
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
            f"{name}: is not a pickle of plain data and uint8 arrays: {one_line(error)}"
        ) from None
    if not isinstance(batch, dict):
        raise DataError(f"{name}: is not a dictionary, as {data_set.name}'s batches are")
    data = _entry(batch, "data", name, data_set)
    pixels = getattr(data, "values", None) if isinstance(data, _Array) else None
    if pixels is None:
        raise DataError(f"{name}: 'data' is not an array; {data_set.name}'s is one of uint8")
    if pixels.ndim != 2 or pixels.shape[1] != _ROW or not len(pixels):
        raise DataError(
            f"{name}: 'data' has shape {pixels.shape}; {data_set.name}'s is (images, {_ROW})"
        )
    return pixels, _labels(batch, len(pixels), name, data_set)


def _labels(batch: Dict[Any, Any], count: int, name: str, data_set: DataSet) -> np.ndarray:
    key = data_set.label_key
    labels = _entry(batch, key, name, data_set)
    if not isinstance(labels, list):
        raise DataError(f"{name}: {key!r} is not a list, as {data_set.name}'s labels are")
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
