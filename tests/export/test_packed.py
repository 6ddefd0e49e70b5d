"""Packed NNPs: fewer bytes, the same numbers, in a NNabla that knows nothing of this package."""

from __future__ import annotations

import json
import zipfile

import nnabla as nn
import nnabla.functions as F
import nnabla.parametric_functions as NPF
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from nnabla.utils.nnp_graph import NnpLoader

import nnabla_dqa as dqa
import nnabla_dqa.parametric_functions as PF
from nnabla_dqa.cli import main
from nnabla_dqa.export.nnp import read_nnp
from nnabla_dqa.export.packed import Digits, pack, unpacking, write_packed


def unpacked(x, digits, shape):
    """By NNabla's functions."""
    powers = {
        count: nn.Variable.from_numpy_array(
            (digits.base ** np.arange(count + 1, dtype=np.float32))[None]
        )
        for count in (digits.low, digits.high)
        if count
    }
    with nn.auto_forward(False):
        codes = unpacking(nn.Variable.from_numpy_array(x), powers, digits, shape)
        codes.forward()
    return codes.d


@pytest.mark.parametrize("base", [2, 3, 4, 5, 7, 8, 15, 16, 100, 127, 128, 255, 256])
def test_all_that_a_number_can_hold_comes_back(base):
    """The ends of the range, where rounding would be seen first, and numbers in between."""
    digits = Digits.of(base)
    assert base**digits.low <= 2**23
    assert base**digits.high <= 2**7
    together = digits.low + digits.high
    rng = np.random.RandomState(0)
    edge = [np.zeros(together), np.full(together, base - 1)]
    edge += [np.where(np.arange(together) < i, base - 1, 0) for i in range(together)]
    edge += [np.eye(1, together, i)[0] for i in range(together)]
    codes = np.concatenate([*edge, rng.randint(0, base, 2000 * together)]).astype(int)
    np.testing.assert_array_equal(unpacked(pack(codes, digits), digits, codes.shape), codes)


@given(st.integers(2, 256), st.integers(1, 200), st.integers(0, 2**31))
def test_any_number_of_codes(base, count, seed):
    codes = np.random.RandomState(seed % 2**31).randint(0, base, count)
    digits = Digits.of(base)
    np.testing.assert_array_equal(unpacked(pack(codes, digits), digits, (count,)), codes)


def test_whole_numbers_of_the_mantissa_by_three():
    """Every quotient of the exhaustive range near a multiple, where a division could err."""
    numbers = np.arange(2**23 - 40000, 2**23, dtype=np.float32)
    for power in 3.0 ** np.arange(1, 15):
        found = np.floor((numbers + np.float32(0.5)) / np.float32(power))
        np.testing.assert_array_equal(found, numbers.astype(np.int64) // int(power))


QUANTIZERS = (
    dqa.BWN(),
    dqa.TWN(),
    dqa.SAWB(2),
    dqa.SAWB(2, channel_axis=0),
    dqa.SAWB(3),
    dqa.MinMax(4),
)


def deployed(path, quantizer, maps=130):
    nn.clear_parameters()
    nn.random.prng.seed(0)
    x = nn.Variable((2, 3, 8, 8))
    with dqa.quantizers(quantizer):
        h = F.relu(PF.dqa_convolution(x, 16, (3, 3), pad=(1, 1), name="a"))
        h = F.relu(PF.dqa_convolution(h, maps, (3, 3), name="b"))
    y = NPF.affine(h, 3, name="f")
    dqa.deploy(path, {"x": x}, {"y": y}, allow_untrained=True)
    return path


def outputs(path, batch=5):
    nn.clear_parameters()
    loader = NnpLoader(str(path))
    network = loader.get_network(loader.get_network_names()[0], batch_size=batch)
    network.inputs["x"].d = np.random.RandomState(1).randn(batch, 3, 8, 8)
    network.outputs["y"].forward()
    return network.outputs["y"].d.copy()


@pytest.mark.parametrize("quantizer", QUANTIZERS, ids=str)
def test_the_same_numbers_in_fewer_bytes(quantizer, tmp_path):
    path = deployed(tmp_path / "d.nnp", quantizer)
    made = write_packed(read_nnp(path), tmp_path / "p.nnp")
    np.testing.assert_array_equal(outputs(path), outputs(tmp_path / "p.nnp"))
    assert made.file_bytes < path.stat().st_size
    large = {tensor.name: tensor for tensor in made.tensors}["b/conv/W"]
    assert large.packed < 1.25 * large.least
    assert "b/conv/W/codes" in zipfile.ZipFile(tmp_path / "p.nnp").read(
        "parameter.protobuf"
    ).decode("latin1")


def test_what_stays_float_is_said(tmp_path, capsys):
    path = deployed(tmp_path / "d.nnp", dqa.SAWB(2))
    assert main(["export", str(path), "-o", str(tmp_path / "p.nnp")]) == 0
    said = capsys.readouterr()
    assert "stay float32, where packing saves nothing: a/conv/W" in said.err
    assert "at least" in said.out


def test_every_command_knows_it(tmp_path, capsys):
    path = deployed(tmp_path / "d.nnp", dqa.SAWB(2))
    packed = str(tmp_path / "p.nnp")
    assert main(["export", str(path), "-o", packed]) == 0
    other = str(tmp_path / "other.onnx")
    for command, message in {
        ("check", packed): "it is packed; check the deployed .nnp",
        ("convert", packed, "-o", other + ".nnp", "-q", "bwn"): "is a packed file, whose weights",
        ("deploy", packed, "-o", other + ".nnp"): "is packed, and was deployed before that",
        ("export", packed, "-o", other): "is packed; take the deployed .nnp that it was made of",
    }.items():
        assert main(list(command)) == 1 or command[0] != "check"
        found = capsys.readouterr()
        assert message in found.out + found.err, command
    assert main(["summary", packed]) == 0
    assert "packed" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["-o", "d.nnp", "--force"], "is the input"),
        (["-o", "p.nnp", "--arithmetic", "integer"], "'integer' is for .onnx; .nnp is float"),
        (["-o", "p.nnp", "--network", "main"], "keeps all networks; leave --network out"),
    ],
)
def test_what_is_wrong_is_one_line(tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    deployed(tmp_path / "d.nnp", dqa.SAWB(2))
    before = (tmp_path / "d.nnp").read_bytes()
    assert main(["export", "d.nnp", *arguments]) != 0
    assert message in capsys.readouterr().err
    assert (tmp_path / "d.nnp").read_bytes() == before
    assert not (tmp_path / "p.nnp").exists()


def test_nothing_to_gain_is_an_error(tmp_path, capsys):
    path = deployed(tmp_path / "d.nnp", dqa.SAWB(2), maps=4)
    assert main(["export", str(path), "-o", str(tmp_path / "p.nnp")]) != 0
    assert "no weight of it gets smaller by packing" in capsys.readouterr().err
    assert not (tmp_path / "p.nnp").exists()


def test_the_metadata_name_where_it_came_from(tmp_path):
    path = deployed(tmp_path / "d.nnp", dqa.SAWB(2))
    write_packed(read_nnp(path), tmp_path / "p.nnp")
    found = json.loads(zipfile.ZipFile(tmp_path / "p.nnp").read("nnabla_dqa.json"))
    assert found["kind"] == "packed"
