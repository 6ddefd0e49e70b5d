"""The page "From a deployed NNP to ONNX Runtime": its commands and code run as printed."""

from __future__ import annotations

import re
import shlex
import subprocess
from pathlib import Path

import nnabla as nn
import nnabla.functions as F
import nnabla.parametric_functions as NPF
import numpy as np
import pytest

import nnabla_dqa as dqa
import nnabla_dqa.parametric_functions as PF
from benchmarks.c_runtime import VARIABLE, compiler, sources
from nnabla_dqa.cli import main
from nnabla_dqa.graph.save import save_network

PAGE = (Path(__file__).resolve().parent.parent / "docs" / "export.md").read_text("utf-8")
FENCED = re.findall(r"^```(\w*)\n(.*?)^```$", PAGE, re.S | re.M)


@pytest.fixture
def digits(tmp_path, monkeypatch):
    """A folder with what the page begins with."""
    monkeypatch.chdir(tmp_path)
    x = nn.Variable((1, 1, 8, 8))
    h = F.relu(NPF.convolution(x, 4, (3, 3), name="conv1"))
    save_network("digits.nnp", {"Input": x}, {"y": NPF.affine(h, 10, name="fc1")})
    nn.clear_parameters()
    dqa.convert_file("digits.nnp", "digits_dqa.nnp", "sawb:2")
    dqa.deploy_file("digits_dqa.nnp", "digits_2bit.nnp", allow_untrained=True)
    rng = np.random.RandomState(0)
    arrays = {"x": rng.rand(30, 1, 8, 8).astype(np.float32), "y": rng.randint(0, 10, (30, 1))}
    np.savez("digits_test.npz", **arrays)
    return tmp_path


def model(x, train):
    with dqa.quantizers(dqa.TWN()):
        return PF.dqa_affine(x, 3, name="fc")


def test_the_page(digits, capsys):
    shell = next(text for kind, text in FENCED if kind == "sh")
    install, command = shell.splitlines()
    assert install.startswith("pip install 'nnabla_dqa[onnx]'")
    program, *arguments = shlex.split(command)
    assert program == "nnabla-dqa"
    assert main(arguments) == 0
    assert "verified on 30 samples in ONNX Runtime" in capsys.readouterr().out
    export, run = [text for kind, text in FENCED if kind == "python"]
    exec(export, {"x": nn.Variable((2, 6)), "model": model})
    assert "verified on 30 samples" in capsys.readouterr().out
    assert Path("small.onnx").exists()
    exec(run, {})
    assert len(capsys.readouterr().out.strip("[]\n").split()) == 30


def test_a_smaller_nnp(tmp_path, monkeypatch, capsys):
    """The page's command, and the same outputs of what it writes."""
    monkeypatch.chdir(tmp_path)
    (command,) = re.findall(r"`(nnabla-dqa export \S+ -o \S+\.nnp)`", PAGE)
    _, *arguments = shlex.split(command)
    _, source, _, target = arguments
    x = nn.Variable((1, 1, 12, 12))
    with dqa.quantizers(dqa.SAWB(2)):
        y = PF.dqa_affine(x, 200, name="fc")
    dqa.deploy(source, {"x": x}, {"y": y}, allow_untrained=True)
    assert main(arguments) == 0
    assert Path(target).stat().st_size < Path(source).stat().st_size
    found = []
    for path in (source, target):
        nn.clear_parameters()
        given = nn.Variable.from_numpy_array(np.ones((2, 1, 12, 12)))
        y = nn.graph_def.load(path, batch_size=2)(given, batch_size=2)
        y.forward()
        found.append(y.d.copy())
    np.testing.assert_array_equal(*found)


@pytest.mark.slow
def test_the_c_program(digits):
    folder = sources()
    if folder is None:
        pytest.skip(f"{VARIABLE} names no clone of github.com/sony/nnabla-c-runtime")
    if compiler() is None:
        pytest.skip("there is no C compiler")
    (program,) = [text for kind, text in FENCED if kind == "c"]
    _, build = [text for kind, text in FENCED if kind == "sh"]
    Path("run.c").write_text(program)
    Path("nnabla-c-runtime").symlink_to(folder.resolve())
    command = build.splitlines()[1].replace("../", f"{digits}/")
    subprocess.run(command, shell=True, cwd=folder, check=True)
    dqa.convert_file("digits.nnp", "one_dqa.nnp", "bwn")
    dqa.deploy_file("one_dqa.nnp", "one.nnp", allow_untrained=True)
    assert main(["export", "one.nnp", "-o", "one.nnb"]) == 0
    x = np.random.RandomState(0).rand(1, 1, 8, 8).astype(np.float32)
    numbers = "\n".join(f"{value:.9g}" for value in x.ravel())
    done = subprocess.run(
        ["./run", "one.nnb"], input=numbers, capture_output=True, text=True, check=True
    )
    found = np.array([float(line) for line in done.stdout.split()])
    y = nn.graph_def.load("one.nnp", batch_size=1)(nn.Variable.from_numpy_array(x), batch_size=1)
    y.forward()
    np.testing.assert_allclose(found, y.d.ravel(), rtol=1e-5, atol=1e-6)


def test_the_forms_of_arithmetic():
    from nnabla_dqa.export.onnx.write import ARITHMETIC

    named = re.findall(r"^\| `(\w+)`", PAGE, re.M)
    assert sorted([*named, "auto"]) == sorted(ARITHMETIC)
