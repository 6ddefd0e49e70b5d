"""Exported files beside the NNP: batch sizes, and what must not count as verified."""

from __future__ import annotations

import nnabla as nn
import nnabla.functions as F
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

import nnabla_dqa as dqa
import nnabla_dqa.parametric_functions as PF
from nnabla_dqa.cli import main
from nnabla_dqa.data import DataError
from nnabla_dqa.nnp_format.archive import Archive
from nnabla_dqa.solver.finite_check import NonFiniteError

SHAPE = (1, 4, 5)
SAMPLES = 7


def made(folder, batch=2, function=lambda y: y, **options):
    """A deployed net of three classes, its ONNX file, and data for it."""
    x = nn.Variable((batch, *SHAPE))
    with dqa.quantizers(dqa.MinMax(2)):
        y = function(PF.dqa_affine(x, 3, name="f"))
    dqa.deploy(folder / "d.nnp", {"x": x}, {"y": y}, allow_untrained=True, **options)
    dqa.export_file(folder / "d.nnp", folder / "d.onnx")
    rng = np.random.RandomState(0)
    arrays = {"x": rng.rand(SAMPLES, *SHAPE).astype(np.float32), "y": rng.randint(0, 2, SAMPLES)}
    np.savez(folder / "data.npz", **arrays)
    return arrays


def verify(folder, **options):
    data = dqa.DataRecipe(str(folder / "data.npz"))
    return dqa.verify_export(folder / "d.nnp", folder / "d.onnx", data, **options)


@pytest.mark.parametrize(("batch", "filled"), [(4, 1), (7, 0), (10, 3), (1, 0)])
def test_a_fixed_batch_size(tmp_path, batch, filled):
    made(tmp_path, batch, variable_batch_size=False)
    found = verify(tmp_path)
    assert found.ok
    assert (found.samples, found.batch_size, found.filled) == (SAMPLES, batch, filled)
    assert f"in batches of {batch}, which is the file's own size" in str(found)
    assert (f"filled up with {filled} copies of its last sample" in str(found)) == bool(filled)
    assert found.same_class == 1.0
    assert found.score == found.nnp_score
    # As with an open batch: copies do not count.
    wanted = dqa.evaluate_file(
        tmp_path / "d.nnp", dqa.DataRecipe(str(tmp_path / "data.npz")), batch_size=batch
    )
    assert found.nnp_score == wanted.value


@pytest.mark.parametrize(
    "function", [lambda y: y[:, 1:], lambda y: F.slice(y, (0, 0), (-1, 3), (1, 1))]
)
def test_a_batch_that_slices_fix(tmp_path, function):
    made(tmp_path, 4, function)
    found = verify(tmp_path)
    assert found.ok
    assert found.batch_size == 4


def test_an_open_batch_says_nothing(tmp_path):
    made(tmp_path)
    found = verify(tmp_path, batch_size=3)
    assert (found.batch_size, found.filled) == (0, 0)
    assert "batches" not in str(found)


def test_nan_in_nnabla_is_not_verified(tmp_path):
    arrays = made(tmp_path, function=lambda y: F.exp(F.abs(y)))
    arrays["x"][5] *= 1e6
    np.savez(tmp_path / "data.npz", **arrays)
    for size in (2, 4, 100):
        with pytest.raises(NonFiniteError, match="output y is NaN or infinite, first for sample 5"):
            verify(tmp_path, batch_size=size)
    archive = Archive.read(tmp_path / "d.nnp")
    bias = archive.parameters["f/affine/b"]
    archive.parameters["f/affine/b"] = bias._replace(array=np.full(3, np.inf, np.float32))
    archive.write(tmp_path / "d.nnp")
    with pytest.raises(NonFiniteError, match="output y is NaN or infinite, first for sample 0"):
        verify(tmp_path)


def test_nan_in_onnx_runtime_alone_is_not_the_same(tmp_path):
    made(tmp_path)
    model = onnx.load(str(tmp_path / "d.onnx"))
    (bias,) = [t for t in model.graph.initializer if t.name == "f/affine/b"]
    bias.raw_data = np.full(3, np.nan, np.float32).tobytes()
    onnx.save(model, str(tmp_path / "d.onnx"))
    found = verify(tmp_path)
    assert not found.ok
    assert not found._replace(quantized_activations=True).ok
    assert "NOT the same" in str(found)


def test_a_wrong_label_is_one_line(tmp_path):
    arrays = made(tmp_path)
    arrays["y"][3] = 77
    np.savez(tmp_path / "data.npz", **arrays)
    with pytest.raises(DataError, match="column 'y' has the label 77; the network knows 3"):
        verify(tmp_path)


def flat(folder, columns=3, height=4, kind="Slice"):
    """An ONNX file with the names of the net that takes and gives something else."""
    ends = [helper.make_tensor(n, TensorProto.INT64, [1], [v]) for n, v in zip("sea", (0, 3, 1))]
    nodes = [helper.make_node("Flatten", ["x"], ["flat"], axis=1)]
    ends[1].int64_data[0] = columns
    nodes.append(helper.make_node(kind, ["flat", "s", "e", "a"], ["y"]))
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 1, height, 5])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", columns])],
        ends,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=7)
    onnx.save(model, str(folder / "d.onnx"))


def test_other_shapes_are_named(tmp_path):
    made(tmp_path)
    flat(tmp_path)
    assert not verify(tmp_path).ok
    flat(tmp_path, columns=1)
    with pytest.raises(dqa.ExportError, match=r"its output y has the shape \(7, 1\), .* \(7, 3\)"):
        verify(tmp_path, batch_size=7)
    flat(tmp_path, height=3)
    with pytest.raises(dqa.ExportError, match=r"input x has the shape \(any, 1, 3, 5\), .*4, 5\)"):
        verify(tmp_path)


def test_what_onnx_runtime_does_not_run_is_one_line(tmp_path):
    made(tmp_path)
    shape = helper.make_tensor("shape", TensorProto.INT64, [2], [-1, 7])
    graph = helper.make_graph(
        [helper.make_node("Reshape", ["x", "shape"], ["y"])],
        "net",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 1, 4, 5])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 7])],
        [shape],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=7)
    onnx.save(model, str(tmp_path / "d.onnx"))
    with pytest.raises(dqa.ExportError, match="ONNX Runtime does not run it") as caught:
        verify(tmp_path, batch_size=3)
    assert "\n" not in str(caught.value)


def test_wrong_arguments_are_one_line(tmp_path):
    made(tmp_path)
    with pytest.raises(dqa.RecipeError, match=r"data must be a DataRecipe.*got 'data\.npz'"):
        dqa.verify_export(tmp_path / "d.nnp", tmp_path / "d.onnx", "data.npz")
    for size in (2.5, 0, "3"):
        with pytest.raises(ValueError, match="batch_size must be a whole number from 1 on; got"):
            verify(tmp_path, batch_size=size)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--verify", "no.npz"], "no.npz"),
        (["--verify", "wrong.npz"], "column 'x'"),
        (["--verify", "data.npz", "--limit", "0"], "--limit"),
        (["--verify", "data.npz", "--input", "z=x"], "no network has an input 'z'"),
        (["--verify", "data.npz", "--network", "no"], "no"),
    ],
)
def test_what_is_wrong_with_verify_replaces_no_file(
    tmp_path, capsys, monkeypatch, arguments, message
):
    made(tmp_path)
    monkeypatch.chdir(tmp_path)
    np.savez("wrong.npz", x=np.zeros((5, 2, 2), np.float32), y=np.zeros(5))
    (tmp_path / "d.onnx").write_bytes(b"mine")
    assert main(["export", "d.nnp", "--force", *arguments]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert message in err
    assert err.count("\n") == 1
    assert (tmp_path / "d.onnx").read_bytes() == b"mine"
