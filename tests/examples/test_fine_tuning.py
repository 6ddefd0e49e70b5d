"""examples/fine_tuning.py, which makes a table of docs/method.md."""

from __future__ import annotations

import argparse
import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest

from scripts import readme

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


@pytest.fixture
def fine_tuning(monkeypatch):
    """The example as a module; what it puts on the path is gone afterwards."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    names = ("digits", "narrow", "runner")
    for name in names:
        monkeypatch.delitem(sys.modules, name, raising=False)
    spec = importlib.util.spec_from_file_location("fine_tuning", EXAMPLES / "fine_tuning.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    yield module
    for name in names:
        sys.modules.pop(name, None)


def test_a_row(fine_tuning, monkeypatch):
    scores = {"plain": [0.90, 0.92], "mixture": [0.95, 0.93]}
    run = lambda kind, method, seed, given: scores[method][seed]  # noqa: E731
    monkeypatch.setitem(fine_tuning.NETS, "digits", run)
    row = fine_tuning.line("digits", "minmax", 2, argparse.Namespace(work=None))
    accuracies = row["accuracies"]
    assert fine_tuning.paired(accuracies["mixture"], accuracies["plain"]) == "+3.00 ± 2.00"
    meta = {"command": "c", "measured_on": "m", "machine": "x"}
    table = readme.fine_tuned({"rows": [row], "meta": meta})
    assert "| digits | `minmax` | 2 | 91.00 ± 1.41 | +3.00 ± 2.00 |" in table


@pytest.mark.slow
def test_a_run_of_the_digits_net_and_what_is_held_out(fine_tuning, tmp_path, monkeypatch):
    monkeypatch.setattr(fine_tuning.digits, "EPOCHS", 1)
    fine_tuning.digits.main(tmp_path, fine_tuning.HELD_OUT)
    parts = [np.load(tmp_path / f"digits_{name}.npz")["x"] for name in ("test", "held", "train")]
    assert [len(x) for x in parts] == [500, 397, 900]
    images, _ = fine_tuning.digits.load()
    np.testing.assert_array_equal(np.concatenate(parts), images)

    given = argparse.Namespace(work=tmp_path)
    found = fine_tuning.digits_run("bwn", "mixture", 0, given)
    assert 0.5 < found <= 1
    record = (tmp_path / "digits-bwn-mixture-0" / "recipe.yaml").read_text("utf-8")
    assert "digits_held.npz" in record
    assert "bwn/twn/float" in record
    # What is finished is not run again.
    monkeypatch.setattr(fine_tuning, "train_alone", None)
    assert fine_tuning.digits_run("bwn", "mixture", 0, given) == found
