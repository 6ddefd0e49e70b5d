"""CIFAR's binary versions."""

from __future__ import annotations

import numpy as np
import pytest

from nnabla_dqa.data import DataError, open_data
from tests.data.files import whole, write_records


def cifar10(folder, count=2):
    parts = [write_records(folder / f"data_batch_{i}.bin", count, seed=i) for i in range(1, 6)]
    test = write_records(folder / "test_batch.bin", 3)
    return [np.concatenate(part) for part in zip(*parts)], test


@pytest.mark.parametrize("inner", ["", "cifar-10-batches-bin"])
def test_cifar10(tmp_path, inner):
    train, test = cifar10(tmp_path / inner)
    for subset, (pixels, labels) in {"train": train, "validation": test}.items():
        data = open_data(tmp_path, subset, scale=1)
        assert data.shapes == {"x": (3, 32, 32), "y": (1,)}
        np.testing.assert_array_equal(whole(data)["x"], pixels)
        assert whole(data)["y"].ravel().tolist() == labels.tolist()
    np.testing.assert_allclose(whole(open_data(tmp_path, "train"))["x"], train[0] / 255, rtol=1e-6)


@pytest.mark.parametrize("inner", ["", "cifar-100-binary"])
def test_cifar100(tmp_path, inner):
    expected = {
        "train": write_records(tmp_path / inner / "train.bin", 5, 2, 20),
        "validation": write_records(tmp_path / inner / "test.bin", 4, 2, 20, seed=1),
    }
    (tmp_path / inner / "fine_label_names.txt").write_text("apple\n")
    for subset, (pixels, labels) in expected.items():
        batch = whole(open_data(tmp_path, subset, scale=1))
        np.testing.assert_array_equal(batch["x"], pixels)
        assert batch["y"].ravel().tolist() == labels.tolist()


def test_missing_file(tmp_path):
    cifar10(tmp_path)
    (tmp_path / "data_batch_3.bin").unlink()
    with pytest.raises(DataError, match=r"data_batch_3\.bin: is missing; CIFAR-10's train subset"):
        open_data(tmp_path, "train")
    assert len(open_data(tmp_path, "validation")) == 3


@pytest.mark.parametrize("size", [0, 1, 3072, 3073 * 2 - 1, 3074 * 2])
def test_not_whole_records(tmp_path, size):
    (tmp_path / "test_batch.bin").write_bytes(bytes(size))
    with pytest.raises(DataError, match=f"{size} bytes are not whole records of 3073 bytes"):
        open_data(tmp_path, "validation")


def test_label_out_of_range(tmp_path):
    write_records(tmp_path / "test_batch.bin", 4)
    content = bytearray((tmp_path / "test_batch.bin").read_bytes())
    content[2 * 3073] = 10
    (tmp_path / "test_batch.bin").write_bytes(content)
    with pytest.raises(DataError, match="record 2 has label 10; CIFAR-10's are 0 to 9"):
        open_data(tmp_path, "validation")


def test_two_data_sets_in_one_folder(tmp_path):
    cifar10(tmp_path / "cifar-10-batches-bin")
    write_records(tmp_path / "cifar-100-binary" / "test.bin", 4, 2, 20)
    with pytest.raises(DataError, match="holds CIFAR-10 and CIFAR-100; name the folder or"):
        open_data(tmp_path, "validation")
    assert len(open_data(tmp_path / "cifar-100-binary", "validation")) == 4
