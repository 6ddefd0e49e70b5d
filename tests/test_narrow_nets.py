"""examples/cifar/narrow.py, which makes the table of docs/cifar.md, on a few records."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from nnabla_dqa.recipes.recipe import Recipe
from tests.data.files import write_records

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]
SMALL = ("epochs=2", "batch_size=16", "model.width=0.25", "data.workers=0")


def narrow(folder, *options):
    command = [sys.executable, str(ROOT / "examples" / "cifar" / "narrow.py")]
    command += ["--data", str(folder / "cifar"), "--work", str(folder / "runs"), "--seeds", "1"]
    command += ["--rows", "minmax-plain", "--set", "epochs=1", "--set", "batch_size=32", *options]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120)


def test_a_row_is_trained_measured_and_kept(tmp_path):
    (tmp_path / "cifar").mkdir()
    for name in (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"):
        write_records(tmp_path / "cifar" / f"{name}.bin", 20)
    done = narrow(tmp_path, "-o", str(tmp_path / "out.json"))
    assert done.returncode == 0, done.stderr
    (row,) = json.loads((tmp_path / "out.json").read_text())["rows"]
    (folder,) = (tmp_path / "runs").iterdir()
    result = json.loads((folder / "result.json").read_text())
    assert row["accuracies"] == [100 * result["accuracy"]]
    assert (row["method"], row["bits"], row["epochs"]) == ("Plain", 2.0, 1)

    before = (folder / "deployed.nnp").read_bytes()
    assert narrow(tmp_path).returncode == 0
    assert (folder / "deployed.nnp").read_bytes() == before
    result["recipe"]["learning_rate"] = 0.5
    (folder / "result.json").write_text(json.dumps(result))
    again = narrow(tmp_path)
    assert again.returncode != 0
    assert "is a run of another recipe" in again.stderr


def test_cifar_100_by_the_same_command(tmp_path):
    (tmp_path / "cifar").mkdir()
    for name in ("train", "test"):
        write_records(tmp_path / "cifar" / f"{name}.bin", 64, label_bytes=2, classes=100)
    done = narrow(tmp_path, "-o", str(tmp_path / "out.json"))
    assert done.returncode == 0, done.stderr
    (folder,) = (tmp_path / "runs").iterdir()
    result = json.loads((folder / "result.json").read_text())
    assert result["recipe"]["model"]["classes"] == 100
    assert narrow(tmp_path).returncode == 0


def test_the_picture_of_a_table(tmp_path):
    script = ROOT / "examples" / "cifar" / "picture.py"
    source, picture = ROOT / "results" / "cifar_table_1.json", tmp_path / "table.png"
    subprocess.run([sys.executable, str(script), str(source), str(picture)], check=True)
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert picture.stat().st_size > 10_000


@pytest.mark.parametrize(
    ("script", "variants"), [("hard_end.py", 8), ("teacher.py", 8)], ids=["hard_end", "teacher"]
)
def test_what_chooses_on_held_out_images(tmp_path, script, variants):
    (tmp_path / "cifar").mkdir()
    for i in range(1, 6):
        write_records(tmp_path / "cifar" / f"data_batch_{i}.bin", 20)
    command = [sys.executable, str(ROOT / "examples" / "cifar" / script), "--seeds", "1"]
    command += ["--data", str(tmp_path / "cifar"), "--rows", "minmax-dqa", "-o", "out.json"]
    command += [word for key in SMALL for word in ("--set", key)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    options = dict(capture_output=True, text=True, env=environment, timeout=300, cwd=tmp_path)
    done = subprocess.run(command, **options)
    assert done.returncode == 0, done.stderr
    content = json.loads((tmp_path / "out.json").read_text())
    assert content["meta"]["measured_on"] == "10 training images held out"
    assert len(content["rows"]) == variants
    rows = [row for row in content["rows"] if "gain" in row]
    assert rows[0]["gain"]["mean"] == 0


def test_the_defaults_of_fine_tuning_are_among_what_was_tried(tmp_path):
    (tmp_path / "cifar").mkdir()
    for i in range(1, 6):
        write_records(tmp_path / "cifar" / f"data_batch_{i}.bin", 20)
    command = [sys.executable, str(ROOT / "examples" / "cifar" / "order.py"), "--seeds", "1"]
    command += ["--data", str(tmp_path / "cifar"), "--kinds", "minmax", "--from-float"]
    command += ["--work", "work", "-o", "out.json"]
    command += [word for key in SMALL for word in ("--set", key)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    options = dict(capture_output=True, text=True, env=environment, timeout=300, cwd=tmp_path)
    done = subprocess.run(command, **options)
    assert done.returncode == 0, done.stderr
    rows = json.loads((tmp_path / "out.json").read_text())["rows"]
    assert [row["method"] for row in rows] == ["Plain", "DQA", "DQA", "DQA", "DQA"]
    results = [json.loads(f.read_text()) for f in tmp_path.glob("work/*/result.json")]
    recipes = [Recipe.from_mapping(r["recipe"]) for r in results if r["method"] == "DQA"]
    assert all(r.init and r.learning_rate < 0.1 for r in recipes)
    assert len(list(tmp_path.glob("work/float*"))) == 1
    defaults = Recipe("a")
    tried = {(r.order, r.strength, r.hard_fraction) for r in recipes}
    assert len(tried) == 4
    assert (defaults.order, defaults.strength, defaults.hard_fraction) in tried
