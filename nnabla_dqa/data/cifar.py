"""CIFAR-10 and CIFAR-100 in their binary versions: records of label bytes and 3072 pixels."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Dict, List, Optional, Tuple

import numpy as np

from nnabla_dqa.data.arrays import ArrayData
from nnabla_dqa.data.base import DataError, MissingSubsetError

PIXELS = (3, 32, 32)


@dataclasses.dataclass(frozen=True)
class Layout:
    """How one of the two is laid out.

    Attributes:
        name: Of the data set.
        folder: That its archive unpacks to.
        label_bytes: At the start of a record; the last of them is the label.
        classes: Number of classes.
        files: By subset.
    """

    name: str
    folder: str
    label_bytes: int
    classes: int
    files: Dict[str, Tuple[str, ...]]


LAYOUTS = (
    Layout(
        "CIFAR-10",
        "cifar-10-batches-bin",
        1,
        10,
        {
            "train": tuple(f"data_batch_{i}.bin" for i in range(1, 6)),
            "validation": ("test_batch.bin",),
        },
    ),
    Layout(
        "CIFAR-100",
        "cifar-100-binary",
        2,
        100,
        {"train": ("train.bin",), "validation": ("test.bin",)},
    ),
)


def find_cifar(folder: Path) -> List[Tuple[Path, Layout]]:
    """Each CIFAR data set in ``folder`` or in the subfolder that its archive unpacks to."""
    return [
        (place, layout)
        for layout in LAYOUTS
        for place in (folder, folder / layout.folder)
        if any((place / name).is_file() for names in layout.files.values() for name in names)
    ]


def open_cifar(
    folder: Path, layout: Layout, subset: str, scale: Optional[float] = None
) -> ArrayData:
    """``x`` of shape (3, 32, 32), pixels, and ``y`` of shape (1,), for CIFAR-100 the fine labels.

    Args:
        folder: With the ``.bin`` files.
        layout: One of ``LAYOUTS``.
        subset: ``"train"`` or ``"validation"``.
        scale: What pixels are multiplied by; default 1/255.

    Raises:
        DataError: A file is missing or empty, is not a whole number of
            records, or has a label out of range.
    """
    parts = [_records(folder / name, layout, subset) for name in layout.files[subset]]
    size = sum(len(part) for part in parts)
    x = np.empty((size, *PIXELS), np.uint8)
    y = np.empty(size, np.uint8)
    start = 0
    for part in parts:
        stop = start + len(part)
        y[start:stop] = part[:, layout.label_bytes - 1]
        x[start:stop] = part[:, layout.label_bytes :].reshape(-1, *PIXELS)
        start = stop
    return ArrayData({"x": x, "y": y}, scale, str(folder))


def _records(path: Path, layout: Layout, subset: str) -> np.ndarray:
    length = layout.label_bytes + int(np.prod(PIXELS))
    if not path.is_file():
        raise MissingSubsetError(
            f"{path}: is missing; {layout.name}'s {subset} subset is"
            f" {', '.join(layout.files[subset])}"
        )
    try:
        size = path.stat().st_size
        if not size or size % length:
            raise DataError(
                f"{path}: {size} bytes are not whole records of {length} bytes, {layout.name}'s;"
                " fetch the file again"
            )
        records = np.fromfile(path, np.uint8).reshape(-1, length)
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error})") from None
    labels = records[:, layout.label_bytes - 1]
    if labels.max() >= layout.classes:
        row = int(np.argmax(labels >= layout.classes))
        raise DataError(
            f"{path}: record {row} has label {labels[row]}; {layout.name}'s are 0 to"
            f" {layout.classes - 1}"
        )
    return records
