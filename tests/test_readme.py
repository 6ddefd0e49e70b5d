"""The code in README.md runs as it is printed, and the examples do what they say."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import warnings
from pathlib import Path

import nnabla as nn
import numpy as np
import pytest

import nnabla_dqa as dqa

ROOT = Path(__file__).resolve().parent.parent


def test_the_code_in_the_readme(tmp_path, monkeypatch, capsys):
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text("utf-8"), re.S)
    rng = np.random.RandomState(0)
    scope = {
        "x": nn.Variable((4, 3, 6, 6)),
        "t": nn.Variable((4, 1)),
        "epochs": 3,
        "steps_per_epoch": 5,
        "next_batch": lambda: (rng.randn(4, 3, 6, 6), rng.randint(0, 10, (4, 1))),
    }
    monkeypatch.chdir(tmp_path)
    with warnings.catch_warnings():
        # Fifteen steps on noise: attention may end anywhere.
        warnings.simplefilter("ignore", dqa.AttentionWarning)
        exec(compile(code, "README.md", "exec", dont_inherit=True), scope)
    printed = capsys.readouterr().out
    assert "conv1/conv" in printed
    assert "small.nnp" in printed
    weights = nn.graph_def.load("small.nnp").get_parameters()["conv1/conv/W"].d
    assert len(np.unique(weights)) <= 4


@pytest.mark.slow
def test_digits_example_end_to_end(tmp_path):
    """A reduced run: one epoch, one seed. Files, fields, and the table."""
    command = [sys.executable, "examples/digits.py", "--epochs", "1", "--seeds", "1"]
    done = subprocess.run(
        [*command, "--output", str(tmp_path)], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    entries = json.loads((tmp_path / "digits.json").read_text())
    assert len(entries) == 13
    for entry in entries:
        assert {
            "method",
            "quantizer",
            "bits",
            "seeds",
            "accuracy",
            "mean",
            "sd",
            "file_bytes",
        } <= set(entry)
        assert len(entry["accuracy"]) == len(entry["seeds"]) == 1
        assert 0 <= entry["accuracy"][0] <= 100
        # The deployed file in a plain NNabla agrees with the trained graph only once that is hard.
        if entry["hard"] != 0:
            assert entry["accuracy"] == entry["soft_accuracy"]
        assert entry["method"] in done.stdout
    sizes = {entry["bits"]: entry["file_bytes"] for entry in entries}
    assert sizes[1] < sizes[2] < sizes[32] / 4
    assert (tmp_path / "attention.png").read_bytes().startswith(b"\x89PNG")
    assert json.loads((tmp_path / "digits.meta.json").read_text())["epochs"] == 1
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "attention.png",
        "digits.json",
        "digits.meta.json",
    ]


def test_the_demo_leaves_the_figures_of_the_pages_alone():
    """A run on another machine takes another time: `make test` after `make demo` must pass."""
    code = "import digits; print(digits.parse([]).output)"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT / "examples", capture_output=True, text=True
    )
    assert done.stdout.splitlines()[-1] == str(ROOT / "runs" / "digits")
    assert "/runs/" in (ROOT / ".gitignore").read_text("utf-8").splitlines()


@pytest.mark.slow
def test_examples_refuse_wrong_arguments_in_one_line():
    command = [sys.executable, "examples/digits.py", "--seeds", "0"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.strip().splitlines()[-1].endswith("--seeds must be at least 1")


def test_plain_evaluation_really_has_no_nnabla_dqa():
    code = (ROOT / "examples" / "evaluate_plain.py").read_text("utf-8")
    blocked = code.split("import nnabla as nn")[0] + "import nnabla_dqa"
    done = subprocess.run([sys.executable, "-c", blocked], capture_output=True, text=True)
    assert done.returncode != 0
    assert "nnabla_dqa" in done.stderr
