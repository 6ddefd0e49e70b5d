"""MNIST's files, whole and damaged."""

from __future__ import annotations

import gzip
import tracemalloc

import numpy as np
import pytest

from nnabla_dqa.data import DataError, open_data
from tests.data.files import REAL, idx_bytes, whole, write_mnist


@pytest.mark.parametrize("zipped", [False, True])
def test_folder(tmp_path, zipped):
    expected = {
        "train": write_mnist(tmp_path, "train", 6, zipped=zipped),
        "validation": write_mnist(tmp_path, "validation", 3, zipped=zipped),
    }
    for subset, (pixels, labels, _) in expected.items():
        data = open_data(tmp_path, subset)
        assert data.shapes == {"x": (1, 4, 5), "y": (1,)}
        batch = whole(data)
        np.testing.assert_allclose(batch["x"][:, 0], pixels / 255, rtol=1e-6)
        assert batch["y"].ravel().tolist() == labels.tolist()
    raw = whole(open_data(str(tmp_path), "train", scale=1))["x"]
    np.testing.assert_array_equal(raw[:, 0], expected["train"][0])


@pytest.mark.parametrize("zipped", [False, True])
@pytest.mark.parametrize("subset", ["train", "validation"])
def test_images_file(tmp_path, zipped, subset):
    pixels, _, path = write_mnist(tmp_path, "train", zipped=zipped)
    np.testing.assert_array_equal(whole(open_data(path, subset, scale=1))["x"][:, 0], pixels)


def test_images_file_of_another_name(tmp_path):
    pixels, _, path = write_mnist(tmp_path)
    images = path.rename(tmp_path / "emnist-images")
    (tmp_path / "train-labels-idx1-ubyte").rename(tmp_path / "emnist-labels")
    np.testing.assert_array_equal(whole(open_data(images, "train", scale=1))["x"][:, 0], pixels)


def test_gz_is_told_by_content(tmp_path):
    pixels, _, path = write_mnist(tmp_path, zipped=True)
    path.rename(tmp_path / "train-images-idx3-ubyte")
    np.testing.assert_array_equal(whole(open_data(tmp_path, "train", scale=1))["x"][:, 0], pixels)


def test_missing_labels(tmp_path):
    path = write_mnist(tmp_path)[2]
    (tmp_path / "train-labels-idx1-ubyte").unlink()
    for source in (tmp_path, path):
        with pytest.raises(DataError, match=r"train-labels-idx1-ubyte or its .gz, are not beside"):
            open_data(source, "train")
    other = path.rename(tmp_path / "digits-idx3-ubyte")
    with pytest.raises(DataError, match=r"digits-idx1-ubyte or its .gz"):
        open_data(other, "train")


def test_missing_subset(tmp_path):
    write_mnist(tmp_path, "train")
    with pytest.raises(DataError, match=r"but not t10k-images-idx3-ubyte or its .gz"):
        open_data(tmp_path, "validation")


def test_labels_file_as_source(tmp_path):
    write_mnist(tmp_path)
    with pytest.raises(
        DataError, match="begins with 0x00000801; an idx file of images begins with"
    ):
        open_data(tmp_path / "train-labels-idx1-ubyte", "train")


BODY = bytes(6 * 4 * 5)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "ends within its header"),
        (idx_bytes(0x803, (6, 4), b""), "ends within its header"),
        (
            idx_bytes(0x802, (6, 4, 5), BODY),
            "begins with 0x00000802; .* with 0x00000803",
        ),
        (b"<!DOCTYPE html><html>", "begins with 0x3c21444f"),
        (idx_bytes(0x803, (0, 4, 5), b""), "holds nothing; its header counts 0 x 4 x 5"),
        (idx_bytes(0x803, (6, 4, 5), BODY[1:]), "6 x 4 x 5 = 120 bytes, and there are only 119"),
        (idx_bytes(0x803, (6, 4, 5), BODY + b"0"), "= 120 bytes, and there are more"),
        (idx_bytes(0x803, (5, 4, 5), BODY[20:]), "has 6 labels, and .* has 5 images"),
    ],
)
@pytest.mark.parametrize("zipped", [False, True])
def test_damaged(tmp_path, content, message, zipped):
    path = write_mnist(tmp_path)[2]
    path.write_bytes(gzip.compress(content) if zipped else content)
    with pytest.raises(DataError, match=message) as caught:
        open_data(path, "train")
    assert "\n" not in str(caught.value)
    assert str(tmp_path) in str(caught.value)


def test_damaged_labels(tmp_path):
    path = write_mnist(tmp_path)[2]
    path.with_name("train-labels-idx1-ubyte").write_bytes(idx_bytes(0x801, (6,), b"12345"))
    with pytest.raises(DataError, match=r"labels-idx1-ubyte: its header counts 6 = 6 bytes"):
        open_data(path, "train")


@pytest.mark.parametrize("keep", [3, 12, 30, -9, -1])
def test_truncated_gz(tmp_path, keep):
    path = write_mnist(tmp_path, zipped=True)[2]
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(DataError, match=r"cannot be read .*; fetch the file again"):
        open_data(tmp_path, "train")


def test_broken_gz(tmp_path):
    path = write_mnist(tmp_path, count=300, zipped=True)[2]
    content = bytearray(path.read_bytes())
    content[len(content) // 2 :] = bytes(len(content) - len(content) // 2)
    path.write_bytes(content)
    with pytest.raises(DataError, match="cannot be read"):
        open_data(tmp_path, "train")


@pytest.mark.parametrize("zipped", [False, True])
def test_gigantic_counts_allocate_nothing(tmp_path, zipped):
    path = write_mnist(tmp_path)[2]
    content = idx_bytes(0x803, (2**32 - 1,) * 3, BODY)
    path.write_bytes(gzip.compress(content) if zipped else content)
    tracemalloc.start()
    try:
        with pytest.raises(DataError, match="there are only 120"):
            open_data(path, "train")
        assert tracemalloc.get_traced_memory()[1] < 2**23
    finally:
        tracemalloc.stop()


def test_real_mnist():
    folder = REAL / "mnist"
    if not folder.is_dir():
        pytest.skip(f"the real MNIST is not at {folder}")
    train, test = open_data(folder, "train"), open_data(folder, "validation")
    assert (len(train), len(test)) == (60000, 10000)
    assert train.shapes == {"x": (1, 28, 28), "y": (1,)}
    batch = whole(test)
    assert np.bincount(batch["y"].ravel().astype(int)).tolist() == [
        980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009,
    ]  # fmt: skip
    assert (batch["x"].min(), batch["x"].max()) == (0, 1)
    assert train.batch(np.arange(5))["y"].ravel().tolist() == [5, 0, 4, 1, 9]
    # The mean that everybody normalizes MNIST with.
    assert whole(train)["x"].mean(dtype=np.float64) == pytest.approx(0.1307, abs=1e-4)
