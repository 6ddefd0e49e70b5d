"""examples/paper/results_table.py: what is one row, its figures, its marks, what is refused."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from nnabla_dqa.cli import main
from nnabla_dqa.recipes.recipe import Recipe
from nnabla_dqa.training.checkpoint import CheckpointError
from nnabla_dqa.training.run_folder import RunError, RunFolder, write_json
from tests.examples.scripts import load

SCRIPT = Path(__file__).resolve().parents[2] / "examples" / "paper" / "results_table.py"
table_script = load(SCRIPT)
results_table, show = table_script.results_table, table_script.main
PAPER = {"table": 1, "accuracy": 94.8, "epochs": 300, "seeds": 1}
RECIPE = {
    "preset": "paper-cifar",
    "model": {"name": "resnet18_32"},
    "data": {"train": "/data/cifar-10-batches-bin"},
    "quantizers": "minmax:2,4,8",
    "hard_fraction": 0,
    "paper": PAPER,
}


def begin(folder, **changes):
    """An unfinished run; ``data`` and ``model`` are merged with RECIPE's."""
    data = {**RECIPE["data"], **changes.pop("data", {})}
    experiment = Recipe.from_mapping({**RECIPE, **changes, "data": data})
    place = RunFolder(folder)
    place.begin(experiment)
    return place


def finish(
    folder, accuracy, top5=None, images=10_000, half=None, seen=None, taught_by=None, **changes
):
    """A finished run, with the parts of its result that count."""
    place = begin(folder, **changes)
    context = [f"cudnn:{half or 'float'}", "cpu:float"]
    result = {
        "accuracy": accuracy,
        "top5": top5,
        "validation_images": images,
        "recipe": place.read_recipe().to_json(),
        "starts": [{"seed": 0, "context": context}],
    }
    if seen is not None:
        result["data"] = seen
    if taught_by is not None:
        result["starts"][0]["teacher"] = {"file": "float/network.nnp", "sum": taught_by}
    write_json(place.result, result)
    return place


def only_row(folder):
    (row,) = results_table([folder]).rows
    return row


def test_seeds_are_one_row(tmp_path):
    for seed, accuracy in enumerate([0.94, 0.95, 0.935]):
        finish(tmp_path / f"deep/er/{seed}", accuracy, seed=seed)
    row = only_row(tmp_path)
    assert row.accuracy == pytest.approx(100 * statistics.mean([0.94, 0.95, 0.935]))
    assert row.sd == pytest.approx(100 * statistics.stdev([0.94, 0.95, 0.935]))
    assert row.difference == pytest.approx(row.accuracy - 94.8)
    assert row.marks == ""
    assert row.names() == ("CIFAR-10", "resnet18_32", "DQA", "minmax:2,4,8", "5", "300/300")
    text = str(results_table([tmp_path]))
    assert "94.17 ± 0.76" in text
    assert text.endswith("94.8     -0.6")
    assert len(text.splitlines()) == 3
    assert "top-5" not in text


def test_one_seed_has_no_deviation_and_no_minus_zero(tmp_path):
    finish(tmp_path / "a", 0.94796)
    assert only_row(tmp_path).sd is None
    text = str(results_table([tmp_path]))
    assert "±" not in text
    assert "94.80       94.8     +0.0" in text


def test_what_changes_no_number_does_not_split_a_row(tmp_path):
    finish(tmp_path / "a", 0.9, seed=0, data={"workers": 0})
    finish(tmp_path / "b", 0.8, seed=1, paper={}, data={"train": "x/cifar-10-batches-bin"})
    row = only_row(tmp_path)
    assert (len(row.runs), row.paper) == (2, PAPER)


def images(samples, checksum):
    return {"samples": samples, "shapes": {"x": [3, 32, 32], "y": [1]}, "checksum": checksum}


def test_runs_on_other_images_are_no_seeds_of_one_row(tmp_path):
    for seed, seen in enumerate([images(50, 7), images(50, 8), images(50, 7), images(40, 7)]):
        finish(tmp_path / str(seed), 0.9, seen=seen, seed=seed)
    # Not a twin of the first.
    finish(tmp_path / "other", 0.9, seen=images(50, 9), seed=0)
    table = results_table([tmp_path])
    seeds = [[run.recipe.seed for run in row.runs] for row in table.rows]
    assert sorted(seeds) == [[0], [0, 2], [1], [3]]
    (line,) = [line for line in str(table).splitlines() if "images.samples=40" in line]
    assert line.endswith("images.samples=40, images.checksum=7")
    assert "shapes" not in str(table)


@pytest.mark.parametrize(
    ("changes", "shown"),
    [
        ({"hard_fraction": 0.4}, "hard_fraction=0.4"),
        ({"learning_rate": 0.05}, "learning_rate=0.05"),
        ({"half": "half"}, "half precision=true"),
        ({"half": "mixed_half"}, "half precision=true"),
        ({"data": {"augment": "none"}}, "data.augment=none"),
    ],
)
def test_rows_that_look_alike_say_how_they_differ(tmp_path, changes, shown):
    finish(tmp_path / "a", 0.9)
    finish(tmp_path / "b", 0.8, **changes)
    finish(tmp_path / "c", 0.7, quantizers="bwn")
    table = results_table([tmp_path])
    assert len(table.rows) == 3
    (line,) = [line for line in str(table).splitlines() if " 80.00 " in line]
    assert line.endswith(shown)
    (line,) = [line for line in str(table).splitlines() if " 70.00 " in line]
    assert line.endswith("  -")


@pytest.mark.parametrize(
    ("changes", "marks"),
    [
        ({"epochs": 30}, "e"),
        ({"paper": {**PAPER, "seeds": 5}}, "s"),
        ({"model": {"name": "resnet18_32", "width": 0.25}}, "w"),
        ({"model": {"name": "resnet18_32", "stem_stride": 2}}, "w"),
        ({"model": "resnet20_32"}, "w"),
        ({"data": {"limit": 1000}}, "d"),
        ({"data": {"holdout": 0.1}, "images": 5000}, "d"),
        ({"images": 500}, "d"),
        ({"epochs": 1, "data": {"limit": 5}, "model": "resnet8_32"}, "ewd"),
        ({"paper": {}, "epochs": 1, "images": 3}, ""),
        ({"paper": {}, "data": {"limit": 3}}, "d"),
        ({"hard_fraction": 0.1}, "r"),
        ({"hard_fraction": 0.1, "mixing": "binary_relax"}, "r"),
        ({"hard_fraction": 0.1, "quantizers": "minmax:2"}, ""),
        ({"hard_fraction": 0.1, "quantizers": None}, ""),
        ({"half": "mixed_half", "quantizers": None, "epochs": 1}, "er"),
        ({"paper": {}, "hard_fraction": 0.1, "half": "half"}, ""),
    ],
)
def test_marks(tmp_path, changes, marks):
    finish(tmp_path / "a", 0.9, **changes)
    assert only_row(tmp_path).marks == marks
    text = str(results_table([tmp_path]))
    assert [
        mark for mark, meaning in table_script.MARKS.items() if f"{mark}: {meaning}" in text
    ] == list(marks)


def test_imagenet(tmp_path):
    paper = {"table": 2, "accuracy": 66.9, "top5": 87.4, "epochs": 90, "seeds": 1}
    data = {"train": "imagenet", "augment": "random_resized_crop"}
    model = {"name": "resnet18_224", "classes": 1000}
    rest = {"images": 50_000, "model": model, "epochs": 90, "paper": paper}
    finish(tmp_path / "a", 0.66, 0.87, data=data, **rest)
    text = str(results_table([tmp_path]))
    assert "66.00       87.00    66.9 (87.4)  -0.9" in text
    assert "marks" not in text
    finish(tmp_path / "b", 0.5, 0.8, data={**data, "size": 96}, **rest)
    assert [row.marks for row in results_table([tmp_path]).rows] == ["", "d"]
    assert "resnet18_224 at 96" in str(results_table([tmp_path]))


def test_order_is_the_papers(tmp_path):
    sets = ["twn", "bwn", "sawb:2,4,8", "sawb:2", "minmax:2,4,8", "minmax:2", None]
    for i, quantizers in enumerate(sets):
        finish(tmp_path / str(i), 0.9, quantizers=quantizers)
    finish(tmp_path / "br", 0.9, quantizers="minmax:2,4,8", mixing="binary_relax")
    names = [row.names()[2:5] for row in results_table([tmp_path]).rows]
    assert names == [
        ("Full precision", "-", "-"),
        ("Plain", "minmax:2", "-"),
        ("Binary-Relax", "minmax:2,4,8", "-"),
        ("DQA", "minmax:2,4,8", "5"),
        ("Plain", "sawb:2", "-"),
        ("DQA", "sawb:2,4,8", "5"),
        ("Plain", "bwn", "-"),
        ("Plain", "twn", "-"),
    ]


def test_a_folder_named_twice_counts_once(tmp_path):
    finish(tmp_path / "a", 0.9)
    assert len(results_table([tmp_path, tmp_path / "a", tmp_path / "a/../a"]).rows[0].runs) == 1


def test_the_same_seed_twice_is_refused(tmp_path):
    finish(tmp_path / "a", 0.9, seed=3)
    finish(tmp_path / "b", 0.91, seed=3)
    with pytest.raises(RunError, match=r"b: has the recipe and the seed \(3\) of .*a; leave out"):
        results_table([tmp_path])


def test_other_teachers_of_one_name_may_have_the_same_seed(tmp_path):
    for seed in (0, 1):
        finish(tmp_path / f"{seed}", 0.9, seed=seed, teacher="network.nnp", taught_by=f"own{seed}")
    assert len(only_row(tmp_path).runs) == 2
    finish(tmp_path / "wide", 0.95, seed=0, teacher="network.nnp", taught_by="wide")
    rows = results_table([tmp_path]).rows
    assert sorted(row.accuracy for row in rows) == [90, 90, 95]
    assert "teacher.checksum=wide" in str(results_table([tmp_path]))
    finish(tmp_path / "again", 0.94, seed=0, teacher="network.nnp", taught_by="wide")
    with pytest.raises(RunError, match=r"has the recipe and the seed \(0\) of"):
        results_table([tmp_path])


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("accuracy", 94.8, "key 'accuracy' must be a number from 0 to 1; got 94.8"),
        ("accuracy", float("nan"), "'accuracy' must be"),
        ("accuracy", True, "'accuracy' must be"),
        ("top5", "0.9", "'top5' must be"),
        ("validation_images", None, "int"),
        ("recipe", {"data": "d", "epoch": 3}, "unknown key 'epoch'"),
        ("recipe", 3, "must be a mapping"),
        ("starts", [{}], "key 'context' is missing"),
        ("starts", None, "NoneType"),
    ],
)
def test_damaged_results_are_named(tmp_path, key, value, message):
    place = finish(tmp_path / "a", 0.9)
    result = json.loads(place.result.read_text())
    write_json(place.result, {**result, key: value})
    with pytest.raises(RunError) as refused:
        results_table([tmp_path])
    assert str(refused.value).startswith(str(place.result))
    assert message in str(refused.value)
    del result[key]
    write_json(place.result, result)
    with pytest.raises(RunError, match=f"result.json: key '{key}' is missing"):
        results_table([tmp_path])


def test_images_that_are_no_mapping_are_named(tmp_path):
    place = finish(tmp_path / "a", 0.9, seen=[3])
    with pytest.raises(RunError, match=r"result\.json: key 'data' must be a mapping; got \[3\]"):
        results_table([tmp_path])
    result = json.loads(place.result.read_text())
    write_json(place.result, {**result, "data": None})
    assert only_row(tmp_path).runs[0].data is None


@pytest.mark.parametrize("content", ["", "{", "[]", "3", "null", '"a"', "{}"])
def test_results_of_another_kind_are_named(tmp_path, content):
    place = finish(tmp_path / "a", 0.9)
    place.result.write_text(content)
    with pytest.raises(RunError, match=r"a/result\.json: "):
        results_table([tmp_path])


def test_unfinished_runs_are_listed(tmp_path):
    place = begin(tmp_path / "a", epochs=7)
    assert str(results_table([tmp_path])) == f"not finished: {place.path}: 0 of 7 epochs are done"
    finish(tmp_path / "b", 0.9)
    table = results_table([tmp_path])
    assert "not finished" in str(table).splitlines()[-1]
    assert "not finished" in table.markdown().splitlines()[-1]
    place.checkpoint.write_bytes(b"nothing")
    with pytest.raises(CheckpointError, match="a/checkpoint"):
        results_table([tmp_path])


def test_where_there_is_no_run(tmp_path):
    with pytest.raises(RunError, match="holds no run"):
        results_table([tmp_path])
    with pytest.raises(RunError, match="is no folder"):
        results_table([tmp_path / "none"])


def test_markdown_and_json(tmp_path, capsys):
    finish(tmp_path / "a", 0.948, epochs=30)
    finish(tmp_path / "b", 0.5, data={"train": "odd|name"}, seed=4)
    begin(tmp_path / "c", epochs=9)
    assert show([str(tmp_path), "--markdown"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("| data set | model |")
    assert lines[1].count("---") == lines[0].count(" | ") + 1
    assert lines[2].endswith("| 30/300 | 1 | 94.80 | 94.8 | +0.0 | e |")
    assert "odd\\|name" in lines[3]
    assert show([str(tmp_path), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    first, second = told["rows"]
    assert (first["accuracy"], first["paper"], first["marks"]) == (94.8, PAPER, "e")
    assert (first["deviation"], second["seeds"]) == (None, [4])
    assert told["unfinished"] == [{"folder": str(tmp_path / "c"), "epoch": 0, "epochs": 9}]


def test_refusals_are_one_line(tmp_path):
    place = finish(tmp_path / "a", 0.9)
    place.result.write_text("{")
    command = [sys.executable, str(SCRIPT), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"results_table.py: {place.result}: is no JSON")
    assert done.stderr.count("\n") == 1


def test_of_real_runs(tmp_path, capsys):
    """The files that nnabla-dqa train writes, two seeds and one that was stopped at epoch 1."""
    rng = np.random.RandomState(0)
    labels = rng.randint(0, 2, (40, 1))
    images = (labels.reshape(-1, 1, 1, 1) * 100 + rng.randint(0, 99, (40, 3, 8, 8))).astype("uint8")
    np.savez(tmp_path / "d.npz", x=images, y=labels)
    recipe = tmp_path / "r.yaml"
    recipe.write_text(
        "preset: paper-cifar\ndata: {train: d.npz, holdout: 0.25, workers: 0}\n"
        "model: {name: resnet8_32, classes: 2, width: 0.1}\n"
        "quantizers: minmax:2,4\nepochs: 2\nbatch_size: 20\n"
        "paper: {table: 1, accuracy: 60, epochs: 300, seeds: 1}\n"
    )
    runs = tmp_path / "runs"
    for seed in "01":
        command = ["train", "--recipe", str(recipe), "--data", str(tmp_path / "d.npz")]
        assert main([*command, "-o", str(runs / seed), "--seed", seed]) == 0
    capsys.readouterr()
    row = only_row(runs)
    accuracies = [json.loads((runs / s / "result.json").read_text())["accuracy"] for s in "01"]
    assert [run.accuracy / 100 for run in row.runs] == accuracies
    assert row.names() == ("d.npz", "resnet8_32 x0.1", "DQA", "minmax:2,4", "5", "2/300")
    assert row.marks == "ewdr"
    (runs / "1/result.json").unlink()
    assert show([str(runs)]) == 0
    last = capsys.readouterr().out.splitlines()[-1]
    assert last == f"not finished: {runs / '1'}: 2 of 2 epochs are done"
