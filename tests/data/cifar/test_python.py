"""Batches of the python version that are damaged."""

from __future__ import annotations

import numpy as np
import pytest

from nnabla_dqa.data import DataError, open_data
from tests.data.cifar.files import BY_ARCHIVE, Python2Pickle, batch_of, write_folder


def open_batch(tmp_path, value, archive="cifar-10-python.tar.gz"):
    layout = BY_ARCHIVE[archive]
    name = layout.files["validation"][0]
    content = value if isinstance(value, bytes) else Python2Pickle().dumps(value)
    write_folder(tmp_path / layout.folder, {name: content})
    return open_data(tmp_path, "validation")


def batch(**changes):
    labels = np.array([[1], [2]], np.uint8)
    pixels = np.zeros((2, 3072), np.uint8)
    whole = batch_of(labels, pixels, BY_ARCHIVE["cifar-10-python.tar.gz"])
    changes = {name.encode(): value for name, value in changes.items()}
    return {k: v for k, v in {**whole, **changes}.items() if v is not None}


def test_the_batch_itself_is_fine(tmp_path):
    assert len(open_batch(tmp_path, batch())) == 2


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([1, 2], "is not a dictionary, as CIFAR-10's batches are"),
        (7, "is not a dictionary, as CIFAR-10's batches are"),
        (np.zeros((2, 3072), np.uint8), "is not a dictionary, as CIFAR-10's batches are"),
        (batch(data=None), "has no 'data'; CIFAR-10's batches have 'data' and 'labels'"),
        (batch(labels=None), "has no 'labels'; CIFAR-10's batches have"),
        (batch(data=b"x" * 6144), "'data' is not an array; CIFAR-10's is one of uint8"),
        (batch(data=[0] * 3072), "'data' is not an array; CIFAR-10's is one of uint8"),
        (batch(data=np.zeros((2, 3071), np.uint8)), r"'data' has shape \(2, 3071\); .*, 3072\)"),
        (batch(data=np.zeros((0, 3072), np.uint8)), r"'data' has shape \(0, 3072\)"),
        (batch(data=np.zeros(6144, np.uint8)), r"'data' has shape \(6144,\)"),
        (batch(data=np.zeros((2, 3, 1024), np.uint8)), r"'data' has shape \(2, 3, 1024\)"),
        (batch(data=np.zeros((2, 3072), np.int8)), "an array of b'i1'; uint8 is needed"),
        (
            batch(data=np.zeros((2, 3072), np.float32)),
            "an array of b'f4'; uint8 is needed",
        ),
        (batch(labels=[1]), "'labels' holds 1 labels for 2 images"),
        (batch(labels=[1, 2, 3]), "'labels' holds 3 labels for 2 images"),
        (batch(labels=[1, 10]), "'labels', row 1 has label 10; CIFAR-10's are 0 to 9"),
        (batch(labels=[-1, 0]), "'labels', row 0 has label -1; CIFAR-10's are 0 to 9"),
        (batch(labels=[1, b"2"]), "'labels', row 1: a bytes is not a whole number"),
        (batch(labels=b"\x01\x02"), "'labels' is not a list"),
        (batch(labels=np.zeros(2, np.uint8)), "'labels' is not a list"),
    ],
)
def test_damaged(tmp_path, value, message):
    with pytest.raises(DataError, match=f"cifar-10-batches-py/test_batch: .*{message}"):
        open_batch(tmp_path, value)


def test_fine_labels_are_needed_for_cifar100(tmp_path):
    with pytest.raises(DataError, match=r"/test: has no 'fine_labels'; CIFAR-100's"):
        open_batch(tmp_path, batch(), "cifar-100-python.tar.gz")
    fine = batch(labels=None, fine_labels=[99, 100])
    with pytest.raises(DataError, match="row 1 has label 100; CIFAR-100's are 0 to 99"):
        open_batch(tmp_path, fine, "cifar-100-python.tar.gz")


@pytest.mark.parametrize("share", [0.0001, 0.01, 0.3, 0.9, 0.9999])
def test_truncated(tmp_path, share):
    content = Python2Pickle().dumps(batch())
    with pytest.raises(DataError, match="test_batch: is not a pickle of plain data"):
        open_batch(tmp_path, content[: int(share * len(content))])
