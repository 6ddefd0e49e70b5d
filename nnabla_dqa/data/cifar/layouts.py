"""The published forms of CIFAR-10 and CIFAR-100: names of folders, archives and files."""

from __future__ import annotations

import dataclasses
from typing import Dict, Tuple

import numpy as np

PIXELS = (3, 32, 32)
"""Channels, rows, columns of an image."""

Part = Tuple[np.ndarray, np.ndarray]
"""What one file holds: uint8 pixels ``(N, 3072)`` and uint8 labels ``(N,)``."""


@dataclasses.dataclass(frozen=True)
class DataSet:
    """CIFAR-10 or CIFAR-100.

    Attributes:
        name: As its authors write it.
        classes: Number of classes.
        label_bytes: At the start of a record of the binary version; the last is the label.
        label_key: Under which a batch of the python version holds the labels.
    """

    name: str
    classes: int
    label_bytes: int
    label_key: str


@dataclasses.dataclass(frozen=True)
class Layout:
    """One version of CIFAR-10 or CIFAR-100.

    Attributes:
        data_set: Which of the two.
        version: ``"binary"`` or ``"python"``.
        archive: Name of the published archive.
        md5: Its published checksum.
        folder: That the archive unpacks to.
        files: In that folder, by subset.
    """

    data_set: DataSet
    version: str
    archive: str
    md5: str
    folder: str
    files: Dict[str, Tuple[str, ...]]

    def describe(self, subset: str) -> str:
        """Which files the subset is, for error messages."""
        return f"{self.data_set.name}'s {subset} subset is {', '.join(self.files[subset])}"


CIFAR10 = DataSet("CIFAR-10", 10, 1, "labels")
CIFAR100 = DataSet("CIFAR-100", 100, 2, "fine_labels")

LAYOUTS = (
    Layout(
        CIFAR10,
        "binary",
        "cifar-10-binary.tar.gz",
        "c32a1d4ab5d03f1284b67883e8d87530",
        "cifar-10-batches-bin",
        {
            "train": tuple(f"data_batch_{i}.bin" for i in range(1, 6)),
            "validation": ("test_batch.bin",),
        },
    ),
    Layout(
        CIFAR10,
        "python",
        "cifar-10-python.tar.gz",
        "c58f30108f718f92721af3b95e74349a",
        "cifar-10-batches-py",
        {
            "train": tuple(f"data_batch_{i}" for i in range(1, 6)),
            "validation": ("test_batch",),
        },
    ),
    Layout(
        CIFAR100,
        "binary",
        "cifar-100-binary.tar.gz",
        "03b5dce01913d631647c71ecec9e9cb8",
        "cifar-100-binary",
        {"train": ("train.bin",), "validation": ("test.bin",)},
    ),
    Layout(
        CIFAR100,
        "python",
        "cifar-100-python.tar.gz",
        "eb9058c3a382ffc7106e4002c42a8d85",
        "cifar-100-python",
        {"train": ("train",), "validation": ("test",)},
    ),
)
