"""``.npz`` files, friendly and hostile."""

from __future__ import annotations

import contextlib
import io
import tracemalloc
import zipfile

import numpy as np
import pytest

from nnabla_dqa.data import DataError, open_data
from tests.data.files import whole


def save(path, **arrays):
    np.savez(path, **arrays)
    return path


@pytest.mark.parametrize("write", [np.savez, np.savez_compressed])
@pytest.mark.parametrize("subset", ["train", "validation"])
def test_columns_under_their_names(tmp_path, write, subset):
    arrays = {
        "image": np.arange(5 * 4 * 4, dtype=np.uint8).reshape(5, 1, 4, 4),
        "label": np.arange(5),
        "feature": np.random.RandomState(0).randn(5, 3),
        "column": np.asfortranarray(np.arange(15.0).reshape(5, 3)),
    }
    write(tmp_path / "d.npz", **arrays)
    data = open_data(tmp_path / "d.npz", subset)
    assert data.shapes == {"image": (1, 4, 4), "label": (1,), "feature": (3,), "column": (3,)}
    batch = whole(data)
    np.testing.assert_allclose(batch["image"], arrays["image"] / 255, rtol=1e-6)
    np.testing.assert_array_equal(batch["feature"], arrays["feature"].astype(np.float32))
    np.testing.assert_array_equal(batch["column"], arrays["column"])
    assert batch["label"].ravel().tolist() == [0, 1, 2, 3, 4]


def test_large_header(tmp_path):
    """A format 2.0 header, which numpy writes for long ones."""
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, np.arange(3.0), version=(2, 0))
    with zipfile.ZipFile(tmp_path / "d.npz", "w") as archive:
        archive.writestr("x.npy", buffer.getvalue())
    assert whole(open_data(tmp_path / "d.npz", "train"))["x"].ravel().tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({}, "holds no columns"),
        ({"x": np.zeros(3), "y": np.zeros(4)}, "column y has 4 samples and x has 3"),
        ({"x": np.float64(3)}, "column x is a single number"),
        ({"x": np.array([1, np.nan])}, "column x, row 1"),
        ({"x": np.array([{}, []], dtype=object)}, "x.npy: holds object; save an array of numbers"),
        ({"x": np.array(["a"])}, "x.npy: holds <U1; save an array of numbers"),
    ],
)
def test_arrays_that_cannot_be_used(tmp_path, arrays, message):
    with pytest.raises(DataError, match=message) as caught:
        open_data(save(tmp_path / "d.npz", **arrays), "train")
    assert "d.npz" in str(caught.value)
    assert "\n" not in str(caught.value)


class Bomb:
    """Would write a file if it were ever unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


def test_pickled_objects_are_never_loaded(tmp_path):
    path = save(tmp_path / "d.npz", x=np.array([Bomb(tmp_path / "ran")], dtype=object))
    with pytest.raises(DataError, match="holds object"):
        open_data(path, "train")
    assert not (tmp_path / "ran").exists()


def header(shape):
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        buffer, {"shape": shape, "fortran_order": False, "descr": "<f4"}
    )
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (header((10**15,)) + bytes(64), r"64 bytes follow the header, and shape \(10+,\)"),
        (header((4,)) + bytes(12), "12 bytes follow the header, .* needs 16"),
        (header((4,)) + bytes(20), "20 bytes follow the header"),
        (header((-4, -4)) + bytes(64), "64 bytes follow the header"),
        (header((4,))[:30], "is not a .npy array"),
        (header((4,)).replace(b")", b" ") + bytes(16), "is not a .npy array"),
        (b"", "is not a .npy array"),
        (b"\x93NUMPY\x07\x00", "7"),
        (b"cos\nsystem\n(S'true'\ntR.", "is not a .npy array"),
    ],
)
def test_damaged_members(tmp_path, content, message):
    with zipfile.ZipFile(tmp_path / "d.npz", "w") as archive:
        archive.writestr("x.npy", content)
    tracemalloc.start()
    try:
        with pytest.raises(DataError, match=message) as caught:
            open_data(tmp_path / "d.npz", "train")
        assert tracemalloc.get_traced_memory()[1] < 2**23
    finally:
        tracemalloc.stop()
    assert "\n" not in str(caught.value)


def test_name_of_two_lines(tmp_path):
    path = save(tmp_path / "d.npz", **{"a\nb": np.array([np.nan])})
    with pytest.raises(DataError, match="column a b, row 0"):
        open_data(path, "train")


def test_other_members(tmp_path):
    with zipfile.ZipFile(tmp_path / "d.npz", "w") as archive:
        archive.writestr("readme.txt", "hello")
    with pytest.raises(DataError, match=r"readme.txt: is not an array"):
        open_data(tmp_path / "d.npz", "train")


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 and then nothing", bytes(range(256))])
def test_not_a_zip(tmp_path, content):
    (tmp_path / "d.npz").write_bytes(content)
    with pytest.raises(DataError, match=r"d.npz: is not an .npz that numpy.savez wrote"):
        open_data(tmp_path / "d.npz", "train")


def test_any_damage_is_one_error(tmp_path):
    content = save(tmp_path / "d.npz", x=np.arange(6.0), y=np.arange(6)).read_bytes()
    rng = np.random.RandomState(0)
    for _ in range(200):
        damaged = bytearray(content[: rng.randint(len(content))])
        damaged = damaged if rng.rand() < 0.3 else bytearray(content)
        for position in rng.randint(0, max(1, len(damaged)), 4):
            damaged[position : position + 1] = bytes([rng.randint(256)])
        (tmp_path / "d.npz").write_bytes(damaged)
        with contextlib.suppress(DataError):
            open_data(tmp_path / "d.npz", "train")
