"""examples/budget.py, which makes the table of docs/cifar.md, on a few records."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from scripts import readme
from tests.data.files import write_records

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]


def compare(folder, *options):
    command = [sys.executable, str(ROOT / "examples" / "budget.py"), "--seeds", "1"]
    command += ["--cifar", str(folder / "cifar"), "--work", str(folder / "runs")]
    command += ["--sets", "minmax:3", "minmax:2,3,4", "--set", "epochs=1"]
    command += ["--set", "batch_size=32", "-o", str(folder / "out.json"), *options]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=200)


def test_rows_are_trained_measured_and_kept(tmp_path):
    (tmp_path / "cifar").mkdir()
    for name in (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"):
        write_records(tmp_path / "cifar" / f"{name}.bin", 20)
    done = compare(tmp_path)
    assert done.returncode == 0, done.stderr
    content = json.loads((tmp_path / "out.json").read_text())
    places = "--seeds 1 --cifar CIFAR --sets minmax:3 minmax:2,3,4 --set epochs=1"
    assert content["command"] == f"python examples/budget.py {places} --set batch_size=32"
    uniform, budget = content["rows"]
    assert (uniform["method"], budget["method"]) == ("uniform", "budget")
    assert set(uniform["bits"][0]) == {3}
    assert budget["budget"] == uniform["packed_bytes"][0] >= budget["packed_bytes"][0]
    table = readme.budgets(content)
    assert f"of {budget['budget']:,}" in table
    files = sorted((tmp_path / "runs").glob("*/deployed.nnp"))
    before = [path.read_bytes() for path in files]
    assert compare(tmp_path).returncode == 0
    assert [path.read_bytes() for path in files] == before


def test_without_data_it_says_what_is_missing(tmp_path):
    command = [sys.executable, str(ROOT / "examples" / "budget.py"), "--mnist", "m"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert "--mnist and --nnp" in done.stderr
