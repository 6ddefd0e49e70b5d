"""Files of CIFAR's binary version: records of label bytes and 3072 pixels."""

from __future__ import annotations

import math

import numpy as np

from nnabla_dqa.data.base import DataError
from nnabla_dqa.data.cifar_layouts import PIXELS, DataSet, Part


def read_binary(content: bytes, name: str, data_set: DataSet) -> Part:
    """Pixels and labels of one file; of CIFAR-100's two labels the fine one.

    Args:
        content: Of the file.
        name: Of the file, for error messages.
        data_set: Which of the two.

    Raises:
        DataError: Empty, not a whole number of records, or a label out of range.
    """
    length = data_set.label_bytes + math.prod(PIXELS)
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
