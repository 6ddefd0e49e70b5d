"""Files of CIFAR's python version: pickled dictionaries that Python 2 wrote."""

from __future__ import annotations

import math
from typing import Dict

import numpy as np

from nnabla_dqa.data.base import DataError
from nnabla_dqa.data.cifar_layouts import PIXELS, DataSet, Part
from nnabla_dqa.data.restricted_pickle import StoredArray, read_pickle


def read_python(content: bytes, name: str, data_set: DataSet) -> Part:
    """Pixels and labels of one file; of CIFAR-100's two labels the fine one.

    Args:
        content: Of the file.
        name: Of the file, for error messages.
        data_set: Which of the two.

    Raises:
        DataError: Not such a pickle, a key is missing or holds something else, or a
            label is out of range.
    """
    batch = read_pickle(content, name)
    if not isinstance(batch, dict):
        raise DataError(
            f"{name}: holds a {type(batch).__name__}; {data_set.name}'s batches are dictionaries"
        )
    pixels = _pixels(batch, name, data_set)
    return pixels, _labels(batch, len(pixels), name, data_set)


def _pixels(batch: Dict[object, object], name: str, data_set: DataSet) -> np.ndarray:
    data = _entry(batch, "data", name, data_set)
    values = data.values if isinstance(data, StoredArray) else None
    if values is None:
        raise DataError(f"{name}: 'data' is not an array; {data_set.name}'s is one of uint8")
    length = math.prod(PIXELS)
    if values.ndim != 2 or values.shape[1] != length or not len(values):
        raise DataError(
            f"{name}: 'data' has shape {values.shape}; {data_set.name}'s is (images, {length})"
        )
    return values


def _labels(batch: Dict[object, object], count: int, name: str, data_set: DataSet) -> np.ndarray:
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


def _entry(batch: Dict[object, object], key: str, name: str, data_set: DataSet) -> object:
    # Python 2 wrote bytes; files that Python 3 saved again have str.
    for written in (key.encode(), key):
        if written in batch:
            return batch[written]
    raise DataError(
        f"{name}: has no {key!r}; {data_set.name}'s batches have 'data' and {data_set.label_key!r}"
    )
