"""``nnabla-dqa export``: from a deployed NNP to a file that ONNX Runtime runs."""

from __future__ import annotations

import subprocess
import sys

import nnabla as nn
import nnabla.functions as F
import nnabla.parametric_functions as NPF
import numpy as np
import onnx
import pytest

import nnabla_dqa as dqa
import nnabla_dqa.parametric_functions as PF
from nnabla_dqa.cli import main
from nnabla_dqa.graph.save import save_network
from nnabla_dqa.nnp_format.archive import Archive
from tests.export.onnx.engines import difference, in_nnabla, run

SHAPE = (1, 8, 8)


def model(x):
    h = F.relu(NPF.convolution(x, 4, (3, 3), pad=(1, 1), name="c1"))
    h = F.relu(NPF.batch_normalization(h, name="bn", batch_stat=False))
    return NPF.affine(h, 3, name="f")


@pytest.fixture
def deployed(tmp_path):
    x = nn.Variable((2, *SHAPE))
    save_network(tmp_path / "n.nnp", {"x": x}, {"y": model(x)})
    nn.clear_parameters()
    dqa.convert_file(tmp_path / "n.nnp", tmp_path / "c.nnp", "minmax:2,4")
    dqa.deploy_file(tmp_path / "c.nnp", tmp_path / "d.nnp", allow_untrained=True)
    rng = np.random.RandomState(0)
    np.savez(
        tmp_path / "data.npz",
        x=rng.rand(50, *SHAPE).astype(np.float32),
        y=rng.randint(0, 3, (50, 1)),
    )
    return tmp_path / "d.nnp"


def test_export_and_verify(deployed, capsys):
    data = deployed.parent / "data.npz"
    assert main(["export", str(deployed), "--verify", str(data)]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert "weights" in out
    assert "x (batch, 1, 8, 8) -> y (batch, 3)" in out
    assert "d.onnx: verified on 50 samples in ONNX Runtime" in out
    assert "same class for 50 of 50; accuracy" in out
    found = dqa.verify_export(deployed, deployed.with_suffix(".onnx"), dqa.DataRecipe(str(data)))
    assert (found.samples, found.same_class, found.ok) == (50, 1.0, True)
    assert found.score == found.nnp_score
    assert f"{found.nnp_score:.4f}" in out
    assert dqa.evaluate_file(deployed, dqa.DataRecipe(str(data))).value == found.nnp_score


def test_a_file_that_gives_something_else(deployed, capsys):
    dqa.export_file(deployed, deployed.with_suffix(".onnx"))
    model = onnx.load(str(deployed.with_suffix(".onnx")))
    (bias,) = [t for t in model.graph.initializer if t.name == "f/affine/b"]
    bias.raw_data = np.array([0.5, 0.0, 0.0], np.float32).tobytes()
    onnx.save(model, str(deployed.with_suffix(".onnx")))
    data = dqa.DataRecipe(str(deployed.parent / "data.npz"), limit=20)
    found = dqa.verify_export(deployed, deployed.with_suffix(".onnx"), data)
    assert not found.ok
    assert found.samples == 20
    assert "NOT the same on 20 samples" in str(found)
    model.graph.input[0].name = "z"
    for node in model.graph.node:
        node.input[:] = ["z" if name == "x" else name for name in node.input]
    onnx.save(model, str(deployed.with_suffix(".onnx")))
    with pytest.raises(dqa.ExportError, match="its input z is not in"):
        dqa.verify_export(deployed, deployed.with_suffix(".onnx"), data)
    deployed.with_suffix(".onnx").write_bytes(b"no model")
    with pytest.raises(dqa.ExportError, match="ONNX Runtime does not load it"):
        dqa.verify_export(deployed, deployed.with_suffix(".onnx"), data)


@pytest.mark.parametrize(
    ("difference", "same", "metric", "score", "activations", "ok"),
    [
        (1e-5, 1.0, "accuracy", 0.9, False, True),
        (1e-3, 1.0, "accuracy", 0.9, False, False),
        (1e-3, 0.995, "accuracy", 0.9005, True, True),
        (1e-3, 0.995, "accuracy", 0.902, True, False),
        (1e-3, 0.98, "accuracy", 0.9, True, False),
        (1e-3, 0.995, "", 0.0, True, True),
        (1e-3, None, "accuracy", 0.9005, True, True),
        (1e-3, None, "mean squared error", 0.9, True, False),
    ],
)
def test_what_counts_as_the_same(difference, same, metric, score, activations, ok):
    reference = 0.9 if metric else 0.0
    found = dqa.Verification(
        "a.onnx", "ONNX Runtime", 10, difference, same, metric, score, reference, activations
    )
    assert found.ok == ok
    assert ("verified" in str(found)) == ok


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["n.nnp", "-o", "o.onnx"], "n.nnp: is not quantized"),
        (["c.nnp", "-o", "o.onnx"], "c.nnp: is converted, not deployed; deploy it first"),
        (["d.nnp", "-o", "o.tflite"], "o.tflite: .tflite is no format that is written; known:"),
        (["d.nnp", "-o", "o"], "o: a name without ending is no format"),
        (["d.nnp", "-o", "there.onnx"], "there.onnx: exists; give --force"),
        (["d.nnp", "-o", "no/o.onnx"], "there is no folder"),
        (["no.nnp", "-o", "o.onnx"], "no.nnp: there is no such file"),
        (["d.nnp", "-o", "o.onnx", "--network", "no"], "d.nnp: there is no network 'no'"),
        (["d.nnp", "-o", "o.onnx", "--limit", "3"], "--limit, --scale and --input say"),
    ],
)
def test_what_is_wrong_is_one_line(deployed, capsys, monkeypatch, arguments, message):
    monkeypatch.chdir(deployed.parent)
    (deployed.parent / "there.onnx").write_bytes(b"mine")
    before = sorted(deployed.parent.iterdir())
    assert main(["export", *arguments]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("nnabla-dqa: ")
    assert message in err
    assert err.count("\n") == 1
    assert sorted(deployed.parent.iterdir()) == before
    assert (deployed.parent / "there.onnx").read_bytes() == b"mine"


def test_nan_is_refused(deployed, capsys):
    archive = Archive.read(deployed)
    for name in ("c1/conv/W", "f/affine/b"):
        old = archive.parameters[name]
        archive.parameters[name] = old._replace(array=np.where(old.array < 9, np.nan, 0.0))
        archive.write(deployed)
        assert main(["export", str(deployed)]) == 2
        err = capsys.readouterr().err
        assert f"{deployed}: parameter {name} holds NaN or infinity; nothing was written" in err
        assert err.count("\n") == 1
        assert not deployed.with_suffix(".onnx").exists()
        archive.parameters[name] = old


def test_nnb_is_not_verified(deployed, capsys):
    """That needs the C runtime; writing it does not."""
    output = deployed.with_suffix(".nnb")
    data = str(deployed.parent / "data.npz")
    assert main(["export", str(deployed), "-o", str(output), "--verify", data]) == 2
    assert "--verify runs .onnx files" in capsys.readouterr().err
    assert main(["export", str(deployed), "-o", str(output)]) == 0
    out, err = capsys.readouterr()
    assert f"{output}: {output.stat().st_size:,} bytes" in out
    assert err == "stored as float32, not of two opposite levels: c1/conv/W, f/affine/W\n"


def test_force(deployed):
    deployed.with_suffix(".onnx").write_bytes(b"old")
    assert main(["export", str(deployed), "--force"]) == 0
    onnx.checker.check_model(str(deployed.with_suffix(".onnx")), full_check=True)


def test_without_the_package(deployed, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnx", None)
    assert main(["export", str(deployed)]) == 2
    err = capsys.readouterr().err
    assert "needs the package onnx" in err
    assert "pip install 'nnabla_dqa[onnx]'" in err
    assert err.count("\n") == 1


@pytest.fixture
def packed(tmp_path):
    """A deployed file that packing makes smaller, ``d.nnp``, and its packed form."""
    nn.random.prng.seed(1)
    x = nn.Variable((2, *SHAPE))
    with dqa.quantizers(dqa.SAWB(2)):
        h = F.relu(PF.dqa_convolution(x, 16, (3, 3), name="c1"))
        y = PF.dqa_affine(h, 30, name="f")
    dqa.deploy(tmp_path / "d.nnp", {"x": x}, {"y": y}, allow_untrained=True)
    nn.clear_parameters()
    dqa.export_file(tmp_path / "d.nnp", tmp_path / "p.nnp")
    return tmp_path / "p.nnp"


def test_a_packed_nnp(packed, capsys):
    """It is a plain network, which can be measured; its bits are those of the deployed file."""
    source = packed.with_name("d.nnp")
    assert main(["export", str(source), "-o", str(packed), "--force"]) == 0
    out, err = capsys.readouterr()
    assert f"p.nnp: {packed.stat().st_size:,} bytes, " in out
    assert "c1/conv/W" in err
    assert err.count("\n") == 1
    rng = np.random.RandomState(0)
    samples = rng.rand(50, *SHAPE).astype(np.float32)
    np.savez(packed.with_name("data.npz"), x=samples, y=rng.randint(0, 30, (50, 1)))
    for layers in ("auto", "nnabla"):
        with dqa.backend(layers=layers):
            for name in ("d.nnp", "p.nnp"):
                data = str(packed.with_name("data.npz"))
                assert main(["evaluate", str(packed.with_name(name)), "--data", data]) == 0
            first, second = capsys.readouterr().out.splitlines()
            assert first.split("accuracy")[1] == second.split("accuracy")[1]


def test_what_is_known_of_a_packed_nnp(packed, capsys):
    """The quantizers and bytes of all its layers, packed or not; its weights are not checked."""
    capsys.readouterr()
    small, large = (dqa.summarize(packed.with_name(name)) for name in ("d.nnp", "p.nnp"))
    assert (small.kind, large.kind) == ("deployed", "packed")
    assert small.layers == large.layers
    assert small.other_parameters == large.other_parameters
    assert small.skipped == large.skipped
    assert main(["check", str(packed)]) == 1
    out, err = capsys.readouterr()
    assert out.splitlines()[-1] == (
        f"{packed}: not checked: its weights are packed by nnabla-dqa export; check d.nnp, the "
        f"deployed file it was made from"
    )
    assert "not quantized, float" not in out
    assert "fault" not in out
    assert err == ""
    page = packed.with_name("page.html")
    assert main(["report", str(packed), "-o", str(page)]) == 0
    assert "A packed file: the network unpacks its weights" in page.read_text("utf-8")


def test_a_packed_nnp_that_somebody_else_has_written(packed):
    archive = Archive.read(packed)
    del archive.metadata["tensors"][1]["packed"]
    archive.write(packed)
    message = "the quantization of f/affine/W cannot be read: key 'packed' is missing"
    with pytest.raises(dqa.NNPError, match=message):
        dqa.summarize(packed)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["export", "p.nnp", "-o", "q.onnx"], "packed by nnabla-dqa export; export d.nnp, the"),
        (["export", "p.nnp", "-o", "q.nnp"], "packed by nnabla-dqa export; export d.nnp, the"),
        (["deploy", "p.nnp", "-o", "q.nnp"], "packed by nnabla-dqa export; use d.nnp, the"),
        (["deploy", "p.nnp", "-o", "q.nnp", "--fold-bn"], "nnabla-dqa export; use d.nnp, the"),
        (
            ["convert", "p.nnp", "-o", "q.nnp", "--quantizers", "minmax:2,4"],
            "p.nnp: is a packed file, whose weights are quantized for good; convert the float file",
        ),
        (
            ["train", "p.nnp", "--recipe", "r.yaml", "-o", "q.nnp"],
            "p.nnp: is a packed file, quantized for good; convert and train the float file",
        ),
        (["export", "d.nnp", "-o", "p.nnp"], "p.nnp: exists; give --force to overwrite it"),
        (["export", "d.nnp", "-o", "d.nnp", "--force"], "d.nnp: is an input, which is never"),
        (["export", "d.nnp", "-o", "q.nnp", "--arithmetic", "qdq"], "is for .onnx; .nnp is float"),
        (["export", "d.nnp", "-o", "q.nnp", "--verify", "x.npz"], "--verify runs .onnx files, not"),
        (["export", "d.nnp", "-o", "q.nnp", "--network", "no"], "an .nnp keeps all networks"),
    ],
)
def test_what_is_wrong_with_a_packed_nnp(packed, capsys, monkeypatch, arguments, message):
    monkeypatch.chdir(packed.parent)
    np.savez("data.npz", x=np.zeros((4, *SHAPE), np.float32), y=np.zeros((4, 1), np.int64))
    packed.with_name("r.yaml").write_text("data: {train: data.npz}\nepochs: 1\n")
    before = {path: path.read_bytes() for path in packed.parent.iterdir()}
    capsys.readouterr()
    assert main(arguments) == 2
    err = capsys.readouterr().err
    assert message in err
    assert err.count("\n") == 1
    assert {path: path.read_bytes() for path in packed.parent.iterdir()} == before


@pytest.mark.slow
def test_nothing_else_imports_onnx():
    """Nor does declaring the command."""
    code = (
        "import sys, nnabla_dqa, nnabla_dqa.cli; nnabla_dqa.cli.parser_of_commands();"
        "nnabla_dqa.export_file;"
        "print([n for n in sys.modules if n.split('.')[0] in ('onnx', 'onnxruntime')])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_a_live_graph(tmp_path):
    """The same bytes as from the file that it deploys to."""
    x = nn.Variable((2, *SHAPE))
    with dqa.quantizers(dqa.SAWB(2), dqa.SAWB(4), dqa.SAWB(8)):
        h = F.relu(PF.dqa_convolution(x, 4, (3, 3), name="c1"))
        y = PF.dqa_affine(h, 3, name="f")
    made = dqa.export_graph(tmp_path / "g.onnx", {"x": x}, {"y": y}, allow_untrained=True)
    dqa.deploy(tmp_path / "g.nnp", {"x": x}, {"y": y}, allow_untrained=True)
    dqa.export_file(tmp_path / "g.nnp", tmp_path / "f.onnx")
    assert (tmp_path / "g.onnx").read_bytes() == (tmp_path / "f.onnx").read_bytes()
    assert isinstance(made, dqa.OnnxFile)
    feeds = {"x": np.random.RandomState(0).rand(5, *SHAPE).astype(np.float32)}
    wanted = in_nnabla(tmp_path / "g.nnp", "main", feeds, ["y"])
    assert difference(run(tmp_path / "g.onnx", feeds), wanted) < 1e-5
    with pytest.raises(dqa.ExportError, match=r"known: \.onnx"):
        dqa.export_graph(tmp_path / "g.tflite", {"x": x}, {"y": y})
