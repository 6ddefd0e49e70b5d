"""CIFAR in every published form, and folders that hold several."""

from __future__ import annotations

import pickle

import numpy as np
import pytest

from nnabla_dqa.data import DataError, MissingSubsetError, open_data
from nnabla_dqa.data.cifar.layouts import LAYOUTS
from tests.data.cifar.files import (
    BY_ARCHIVE,
    Python2Pickle,
    contents,
    members_of,
    write_archive,
    write_folder,
)
from tests.data.files import whole

# The small archives below are none of the published ones.
pytestmark = pytest.mark.filterwarnings("ignore:.*is not the published cifar-")

LAYOUT = pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.archive)


def check(source, expected):
    for subset, (pixels, labels) in expected.items():
        data = open_data(source, subset, scale=1)
        assert data.shapes == {"x": (3, 32, 32), "y": (1,)}
        assert data.classes == ()
        np.testing.assert_array_equal(whole(data)["x"], pixels)
        assert whole(data)["y"].ravel().tolist() == labels.tolist()


@LAYOUT
def test_folder_and_the_one_above(tmp_path, layout):
    files, expected = contents(layout)
    check(write_folder(tmp_path / layout.folder, files), expected)
    check(tmp_path, expected)


@LAYOUT
def test_folder_of_another_name(tmp_path, layout):
    files, expected = contents(layout)
    check(write_folder(tmp_path / "mine", files), expected)


@LAYOUT
def test_archive_and_its_folder(tmp_path, layout):
    files, expected = contents(layout)
    path = write_archive(tmp_path / layout.archive, *members_of(layout, files))
    check(path, expected)
    check(tmp_path, expected)
    assert [entry.name for entry in tmp_path.iterdir()] == [layout.archive]
    check(path.rename(tmp_path / "other.TGZ"), expected)


def test_archive_equals_folder(tmp_path):
    layout = BY_ARCHIVE["cifar-10-binary.tar.gz"]
    files, _ = contents(layout)
    folder = write_folder(tmp_path / layout.folder, files)
    path = write_archive(tmp_path / "x.tar.gz", *members_of(layout, files))
    for subset in ("train", "validation"):
        one, other = (whole(open_data(source, subset)) for source in (folder, path))
        for column in ("x", "y"):
            np.testing.assert_array_equal(one[column], other[column])


@LAYOUT
def test_helper_writes_what_python_reads(layout):
    if layout.version == "python":
        files, expected = contents(layout)
        batch = pickle.loads(files[layout.files["validation"][0]], encoding="bytes")
        pixels, labels = expected["validation"]
        np.testing.assert_array_equal(batch[b"data"], pixels.reshape(-1, 3072))
        assert batch[layout.data_set.label_key.encode()] == labels.tolist()


def test_unpacked_before_archive_and_binary_before_python(tmp_path):
    """Told apart by the number of images."""
    layouts = [layout for layout in LAYOUTS if layout.data_set.name == "CIFAR-10"]
    for count, layout in zip((4, 3), reversed(layouts)):
        files, _ = contents(layout, count)
        write_archive(tmp_path / layout.archive, *members_of(layout, files))
        assert len(open_data(tmp_path, "validation")) == count
    for count, layout in zip((2, 1), reversed(layouts)):
        files, _ = contents(layout, count)
        write_folder(tmp_path / layout.folder, files)
        assert len(open_data(tmp_path, "validation")) == count


@pytest.mark.parametrize("packed", ["", "first", "both"])
def test_two_data_sets(tmp_path, packed):
    for archive in ("cifar-100-python.tar.gz", "cifar-10-binary.tar.gz"):
        layout = BY_ARCHIVE[archive]
        files, _ = contents(layout)
        if packed == "both" or (packed and layout.version == "python"):
            write_archive(tmp_path / archive, *members_of(layout, files))
        else:
            write_folder(tmp_path / layout.folder, files)
    with pytest.raises(DataError, match="holds CIFAR-10 and CIFAR-100; name the folder or file"):
        open_data(tmp_path, "train")


@LAYOUT
def test_missing_subset(tmp_path, layout):
    files, expected = contents(layout)
    for name in layout.files["validation"]:
        del files[name]
    name = layout.files["validation"][0]
    path = write_archive(tmp_path / "a.tar.gz", *members_of(layout, files))
    for source in (write_folder(tmp_path / layout.folder, files), path):
        check(source, {"train": expected["train"]})
        with pytest.raises(MissingSubsetError, match=rf"/{name}:? is missing; CIFAR-\d+'s valid"):
            open_data(source, "validation")


def test_other_files_named_test_are_not_cifar(tmp_path):
    (tmp_path / "test").write_text("#!/bin/sh\n")
    (tmp_path / "train").write_text("")
    with pytest.raises(DataError, match="holds nothing that is understood"):
        open_data(tmp_path, "train")


@pytest.mark.parametrize("protocol", [3, 4])
@pytest.mark.parametrize("key", [str, str.encode])
def test_saved_again_by_python_3(tmp_path, protocol, key):
    pixels = np.random.RandomState(0).randint(0, 256, (2, 3072)).astype(np.uint8)
    batch = {key("data"): pixels, key("labels"): [3, 9]}
    write_folder(tmp_path, {"test_batch": pickle.dumps(batch, protocol)})
    check(tmp_path, {"validation": (pixels.reshape(-1, 3, 32, 32), np.array([3, 9]))})
    renamed = pickle.dumps(batch, 3).replace(b"numpy.core.m", b"numpy._core.m")
    write_folder(tmp_path, {"test_batch": renamed})
    check(tmp_path, {"validation": (pixels.reshape(-1, 3, 32, 32), np.array([3, 9]))})


def test_pixels_stored_by_columns(tmp_path):
    """The order of an array in memory does not change what it holds."""
    layout = BY_ARCHIVE["cifar-10-python.tar.gz"]
    pixels = np.random.RandomState(0).randint(0, 256, (2, 3072)).astype(np.uint8)
    batch = {b"data": np.asfortranarray(pixels), b"labels": [3, 9]}
    folder = write_folder(tmp_path / layout.folder, {"test_batch": Python2Pickle().dumps(batch)})
    check(folder, {"validation": (pixels.reshape(-1, 3, 32, 32), np.array([3, 9]))})
