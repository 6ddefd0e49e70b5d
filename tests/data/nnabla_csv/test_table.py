"""NNabla's CSV data sets, checked against NNabla's own reader."""

from __future__ import annotations

import numpy as np
import pytest
from nnabla.utils.data_source_implements import CsvDataSource

from nnabla_dqa.data import DataError, open_data
from tests.data.files import whole, write_image


def write(path, text, encoding="utf-8"):
    path.write_bytes(text.encode(encoding))
    return path


def nnabla_reads(path, normalize=True):
    """The columns as NNabla's reader gives them."""
    source = CsvDataSource(str(path), normalize=normalize)
    rows = [source._get_data(i) for i in range(source._size)]
    names = source.variables
    return {name: np.array([row[i] for row in rows]) for i, name in enumerate(names)}


def assert_as_nnabla(path):
    batch, expected = whole(open_data(path, "train")), nnabla_reads(path)
    assert list(batch) == list(expected)
    for name, array in expected.items():
        np.testing.assert_allclose(batch[name], array.reshape(batch[name].shape), rtol=1e-6)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("subset", ["train", "validation"])
def test_numbers_and_vectors(tmp_path, encoding, end, subset):
    lines = ["x__0:pixel,x__1,y:ラベル,# note,z", "1,2.5,3,ok,-1e3", '"4", 5 ,6,,7', "", ""]
    path = write(tmp_path / "d.csv", end.join(lines), encoding)
    data = open_data(path, subset)
    assert len(data) == 2
    assert data.shapes == {"x": (2,), "y": (1,), "z": (1,)}
    batch = whole(data)
    assert batch["x"].tolist() == [[1, 2.5], [4, 5]]
    assert batch["y"].tolist() == [[3], [6]]
    assert batch["z"].tolist() == [[-1000], [7]]


def test_as_nnabla_reads(tmp_path):
    rows = []
    for i in range(3):
        write_image(tmp_path / "images" / f"{i}.png", (6, 5, 3), seed=i)
        write_image(tmp_path / "grey" / f"{i}.bmp", (6, 5), seed=i)
        np.save(tmp_path / f"{i}.npy", np.random.RandomState(i).randn(2, 3))
        write(tmp_path / f"{i}.csv", f"1,2\n3,{i}\n\n")
        rows.append(f"images\\{i}.png,./grey/{i}.bmp,{i}.npy,{i}.csv,{i},{i / 7},{-i}")
    header = "x:image,g:grey,a,m:numbers,y:label,v__0:first,v__1:second"
    path = write(tmp_path / "d.csv", "\n".join([header, *rows]) + "\n")
    assert open_data(path, "train").shapes == {
        "x": (3, 6, 5),
        "g": (1, 6, 5),
        "a": (2, 3),
        "m": (2, 2),
        "y": (1,),
        "v": (2,),
    }
    assert_as_nnabla(path)


def test_transparency_as_nnabla_reads(tmp_path):
    for i in range(2):
        write_image(tmp_path / f"{i}.png", (6, 5, 4), seed=i)
    path = write(tmp_path / "d.csv", "x\n0.png\n1.png\n")
    assert open_data(path, "train").shapes == {"x": (4, 6, 5)}
    assert_as_nnabla(path)


def test_scale(tmp_path):
    pixels = write_image(tmp_path / "a.png", (6, 5, 3))
    np.save(tmp_path / "p.npy", pixels)
    np.save(tmp_path / "n.npy", pixels.astype(float))
    path = write(tmp_path / "d.csv", "x,p,n,y\na.png,p.npy,n.npy,7\n")
    for scale in (None, 1):
        batch = whole(open_data(path, "train", scale=scale))
        factor = scale or 1 / 255
        np.testing.assert_allclose(batch["x"][0], pixels.transpose(2, 0, 1) * factor, rtol=1e-6)
        # NNabla takes what an .npy holds as it is.
        np.testing.assert_allclose(batch["p"][0], pixels)
        np.testing.assert_allclose(batch["n"][0], pixels)
        assert batch["y"].tolist() == [[7]]


def test_vectors_are_in_the_order_of_their_indices(tmp_path):
    path = write(tmp_path / "d.csv", "x__10,y,x__2,x__1\n10,0,2,1\n")
    data = open_data(path, "train")
    assert list(data.shapes) == ["x", "y"]
    assert whole(data)["x"].tolist() == [[1, 2, 10]]


def test_files_are_read_when_asked_for(tmp_path):
    for i in range(2):
        write_image(tmp_path / f"{i}.png")
    path = write(tmp_path / "d.csv", "x,y\n0.png,0\n1.png,1\n")
    data = open_data(path, "train")
    (tmp_path / "1.png").write_bytes(b"broken")
    assert data.batch(np.array([0]))["y"].tolist() == [[0]]
    with pytest.raises(DataError, match=r"line 3, column 1 \('x'\): .*1.png: is not an image"):
        data.batch(np.array([1]))


def test_other_shape_or_kind(tmp_path):
    write_image(tmp_path / "0.png", (6, 5, 3))
    write_image(tmp_path / "1.png", (5, 6, 3))
    np.save(tmp_path / "2.npy", np.zeros((3, 6, 5)))
    path = write(tmp_path / "d.csv", "x\n0.png\n1.png\n2.npy\n")
    data = open_data(path, "train")
    with pytest.raises(DataError, match=r"line 3, .* is uint8 of shape \(3, 5, 6\); the first"):
        data.batch(np.array([1]))
    with pytest.raises(DataError, match=r"line 4, .* is float64 of shape"):
        data.batch(np.array([2]))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "line 1: names no variable"),
        ("#a,# b\n1,2\n", "line 1: names no variable"),
        ("x,y\n", "has a header and no rows"),
        ("x,,y\n1,2,3\n", "line 1, column 2: '' has no name"),
        ("x,:label\n1,2\n", "line 1, column 2: ':label' has no name"),
        ("x,__0\n1,2\n", "line 1, column 2: '__0' has no name"),
        ("x__a\n1\n", "line 1, column 1: 'x__a' has the index 'a'"),
        ("x__\n1\n", "has the index ''"),
        ("x__-1\n1\n", "has the index '-1'"),
        ("x,y,x:b\n1,2,3\n", "line 1, column 3: 'x' occurs twice"),
        ("x__0,x__00\n1,2\n", "column 2: 'x__00' occurs twice"),
        ("x,x__0\n1,2\n", "column 2: 'x__0' occurs twice"),
        ("x__0,x\n1,2\n", "column 2: 'x' occurs twice"),
        ("x,y\n1,2\n3\n", "line 3: has 1 cells; the header has 2"),
        ("x,y\n1,2\n\n3,4,5\n", "line 4: has 3 cells; the header has 2"),
        ("x,y\n1,2\n3,abc\n", r"line 3, column 2 \('y'\): 'abc' is not a number"),
        ("x__0,x__1:b\n1,2\n3,\n", r"line 3, column 2 \('x__1:b'\): '' is not a number"),
        ("x\nabc\n", "line 2, column 1 .*: 'abc' is neither a number nor the path of a file"),
        ("x\nabc.tif\n", "neither a number nor the path"),
        ("x\nabc.png\n", "line 2, column 1 .*: there is no file .*abc.png"),
        ("x\n" + "a" * 5000 + ".png\n", "there is no file"),
        ("x__0\nabc.png\n", "line 2, column 1 .*: 'abc.png' is not a number"),
        ("x\nok.csv\n1\n", "line 3, column 1 .*: '1' is neither a number nor the path"),
        ("x\nok.csv\nno.csv\n", "line 3, column 1 .*: there is no file .*no.csv"),
        ("x,y\n1,2\n3,nan\n", r"line 3, column 2 \('y'\): nan is not a finite number"),
        ("x__0,x__1\n1,-inf\n", "line 2, column 2 .*: -inf is not a finite number"),
        ("x\n1e39\n", "line 2, column 1 .*: 1e[+]39 is not a finite number of float32"),
        ("x\nbad.csv\n", "line 2, column 1 .*bad.csv, line 2: could not convert"),
        ("x\nragged.csv\n", "ragged.csv, line 3: has 1 cells; the first line has 2"),
        ("x\nempty.csv\n", "empty.csv: holds no numbers"),
        ("x\nnan.csv\n", "nan.csv: holds NaN"),
        ("x\npickle.npy\n", "pickle.npy: holds object"),
        ("x\nempty.npy\n", "empty.npy: is not a .npy array"),
        ("x\n" + "1" * 200000 + "\n", "line 2: is not CSV text: field larger than field limit"),
    ],
)
def test_wrong_files(tmp_path, text, message):
    write(tmp_path / "ok.csv", "1\n")
    write(tmp_path / "bad.csv", "1,2\n3,b\n")
    write(tmp_path / "ragged.csv", "1,2\n\n3\n")
    write(tmp_path / "empty.csv", "")
    write(tmp_path / "nan.csv", "nan\n")
    np.save(tmp_path / "pickle.npy", np.array([{}], dtype=object), allow_pickle=True)
    write(tmp_path / "empty.npy", "")
    path = write(tmp_path / "d.csv", text)
    with pytest.raises(DataError, match=message) as caught:
        open_data(path, "train")
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)


def test_other_encoding(tmp_path):
    path = write(tmp_path / "d.csv", "x:a\n1\n2\n#ラベル\n", "shift_jis")
    with pytest.raises(DataError, match="line 4: is not UTF-8; save it as UTF-8"):
        open_data(path, "train")


@pytest.mark.parametrize("content", [bytes(range(256)) * 40, b"\x00" * 5000, b"PK\x03\x04\x00\x01"])
def test_binary(tmp_path, content):
    path = tmp_path / "d.csv"
    path.write_bytes(content)
    with pytest.raises(DataError) as caught:
        open_data(path, "train")
    assert str(caught.value).startswith(f"{path}")
    assert "\n" not in str(caught.value)


def test_single_numbers_in_files(tmp_path):
    np.save(tmp_path / "a.npy", np.float32(3))
    path = write(tmp_path / "d.csv", "x\na.npy\n")
    assert whole(open_data(path, "train"))["x"].tolist() == [[3]]
