"""What is told apart, and what is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from nnabla_dqa.data import DataError, open_data
from tests.data.files import write_image, write_mnist, write_records


def test_nothing_there(tmp_path):
    with pytest.raises(DataError, match=r"there is no file or folder .*missing"):
        open_data(tmp_path / "missing", "train")
    for source in ("", "a" * 5000):
        with pytest.raises(DataError, match="there is no file or folder"):
            open_data(source, "train")


@pytest.mark.parametrize("source", [None, 3, b"bytes", [Path(".")], {"x": np.zeros(3)}])
def test_not_a_path(source):
    with pytest.raises(DataError, match="is not a path"):
        open_data(source, "train")


@pytest.mark.parametrize("subset", ["test", "", None, "Train", []])
def test_unknown_subset(tmp_path, subset):
    with pytest.raises(DataError, match="is neither 'train' nor 'validation'"):
        open_data(tmp_path, subset)


def test_scale_is_checked_before_reading(tmp_path):
    with pytest.raises(DataError, match="scale=0 is not a number above 0"):
        open_data(tmp_path, "train", scale=0)


@pytest.mark.parametrize("name", ["a.txt", "a.h5", "a", "a.png", "a.npy"])
def test_unknown_file(tmp_path, name):
    (tmp_path / name).write_bytes(b"\x1f\x8bhello")
    with pytest.raises(DataError, match=r"needed is a folder with MNIST.*CIFAR.*\.npz.*\.csv"):
        open_data(tmp_path / name, "train")


def test_unknown_folder(tmp_path):
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "notes.txt").write_text("hello")
    with pytest.raises(DataError, match="holds nothing that is understood; needed is a folder"):
        open_data(tmp_path, "train")


def test_ambiguous_folder(tmp_path):
    write_mnist(tmp_path)
    write_records(tmp_path / "train.bin", 2, 2, 20)
    with pytest.raises(DataError, match="holds train-images-idx3-ubyte and CIFAR-100; name"):
        open_data(tmp_path, "train")


@pytest.mark.parametrize(
    ("option", "value"), [("image_shape", (1, 28, 28)), ("classes", ["a", "b"])]
)
def test_options_of_class_folders_alone(tmp_path, option, value):
    np.savez(tmp_path / "d.npz", x=np.zeros(3))
    write_mnist(tmp_path / "mnist")
    for source in (tmp_path / "d.npz", tmp_path / "mnist"):
        with pytest.raises(DataError, match=f"{option} is for folders of images"):
            open_data(source, "train", **{option: value})
    write_image(tmp_path / "images" / "a" / "1.png")
    assert len(open_data(tmp_path / "images", "train", **{option: value})) == 1


def test_file_that_cannot_be_opened(tmp_path, monkeypatch):
    (tmp_path / "a.csv").write_text("x\n1\n")

    def refuse(self, *args, **options):
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(DataError, match=r"a.csv: cannot be read: .*Permission denied"):
        open_data(tmp_path / "a.csv", "train")
