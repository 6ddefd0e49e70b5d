"""The examples in the docstrings run and print what they say."""

from __future__ import annotations

import doctest
import importlib
import inspect
from pathlib import Path

import nnabla as nn
import nnabla.functions as F
import nnabla.parametric_functions as PF
import numpy as np
import pytest
from nnabla.utils.save import save

import nnabla_dqa as dqa

ROOT = Path(dqa.__file__).parent
MODULES = sorted(
    ".".join(("nnabla_dqa", *path.relative_to(ROOT).with_suffix("").parts))
    for path in ROOT.rglob("*.py")
    if ">>> " in path.read_text("utf-8")
)
# What others return, and what subclasses of one's own are for: CONTRIBUTING.md has those.
WITHOUT = {
    *("Accelerated", "ActivationCheck", "AttachedSolver", "Check", "Conversion", "Deployment"),
    *("Epoch", "FileSummary", "MixingRule", "NnbFile", "OnnxFile", "PackedFile", "Quantizer"),
    *("Report", "Score", "Training", "Verification", "register_mixing_rule", "register_quantizer"),
    # Its lines would be those of a whole training.
    *("BinaryRelaxOriginal", "QNActivation", "SqueezeThreshold"),
}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The working directory of an example, with the files that examples are about."""
    x = nn.Variable((4, 1, 8, 8))
    h = F.relu(PF.convolution(x, 4, (3, 3), name="conv1"))
    y = F.softmax(PF.affine(h, 10, name="fc"))
    network = {"name": "net", "batch_size": 4, "names": {"x": x}, "outputs": {"y": y}}
    executor = {"name": "run", "network": "net", "data": ["x"], "output": ["y"]}
    save(str(tmp_path / "lenet.nnp"), {"networks": [network], "executors": [executor]})
    rng = np.random.RandomState(0)
    images, labels = rng.rand(40, 1, 8, 8).astype(np.float32), np.arange(40) % 10
    np.savez(tmp_path / "digits.npz", x=images, y=labels)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("name", MODULES)
def test_examples(name, folder):
    module = importlib.import_module(name)
    tests = [t for t in doctest.DocTestFinder().find(module, name, globs={}) if t.examples]
    assert tests, f"{name} has '>>> ' outside of its docstrings"
    report: list[str] = []
    runner = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS)
    for test in tests:
        nn.clear_parameters()
        runner.run(test, out=report.append)
    assert not runner.failures, "".join(report)


def test_public_names_have_examples():
    callables = {n for n in dqa.__all__ if not _is_error(getattr(dqa, n))}
    having = {n for n in callables if ">>> " in (inspect.getdoc(getattr(dqa, n)) or "")}
    assert callables - having == WITHOUT


def _is_error(value):
    return inspect.isclass(value) and issubclass(value, BaseException)
