"""Whole experiments, small: learned, stopped anywhere, gone on with, deployed, refused."""

from __future__ import annotations

import json
import os
import signal

import nnabla as nn
import numpy as np
import pytest

from nnabla_dqa.data import DataError
from nnabla_dqa.recipes.checks import RecipeError
from nnabla_dqa.recipes.recipe import Recipe
from nnabla_dqa.solver.finite_check import NonFiniteError
from nnabla_dqa.training.checkpoint import CheckpointError, read_checkpoint
from nnabla_dqa.training.result import TrainingStopped
from nnabla_dqa.training.run_folder import RunError, RunFolder
from nnabla_dqa.training.tasks.task import Task
from tests.data.files import write_image
from tests.training.experiments import (
    KINDS,
    experiment,
    interrupted,
    result_of,
    run,
    write_images,
)
from tests.training.files import assert_same_parameters, one_line, parameters_of

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::nnabla_dqa.layers.tensors.AttentionWarning"),
]

FILES = {"recipe.yaml", "run.json", "result.json", "checkpoint", "monitors"}


def accuracy_of(path, data):
    """Share of the samples that plain NNabla classifies rightly with this file, one by one."""
    batch = data.batch(np.arange(len(data)))
    x = nn.Variable((1, *batch["x"].shape[1:]))
    y = nn.graph_def.load(str(path))(x)
    right = 0
    for image, label in zip(batch["x"], batch["y"][:, 0]):
        x.d = image
        y.forward()
        right += int(y.d.argmax() == label)
    return right / len(data)


@pytest.mark.parametrize("kind", KINDS)
def test_every_method_learns_and_what_it_writes_scores_the_same(kind, tmp_path):
    recipe = experiment(tmp_path, epochs=6, data={"augment": "none"}, **KINDS[kind])
    seen = []
    result = run(recipe, tmp_path / "run", on_epoch=seen.append)
    network = "network.nnp" if kind == "Full precision" else "deployed.nnp"
    assert set(os.listdir(tmp_path / "run")) == FILES | {network}
    assert result.path == tmp_path / "run" / network
    assert tuple(seen) == result.epochs
    assert seen[-1].loss < 0.5 * seen[0].loss
    assert result.deployed_score > 0.8
    # Of two quantizers the user has to know this; the build's warnings are not shown.
    expected = ["alpha does not learn"] if kind == "DQA" else []
    assert len(result.messages) == len(expected)
    assert all(text in message for text, message in zip(expected, result.messages))

    validation = Task(recipe).validation
    assert result.deployed_score == seen[-1].score == accuracy_of(result.path, validation)
    told = result_of(tmp_path / "run")
    assert (told["method"], told["accuracy"]) == (kind, result.deployed_score)
    assert told["file_bytes"] == result.path.stat().st_size
    assert told["validation_images"] == 16
    assert told["recipe"] == recipe.to_json()
    assert told["data"] == Task(recipe).identity()["data"]
    assert told["top5"] is None
    assert [epoch["score"] for epoch in told["epochs"]] == [epoch.score for epoch in seen]
    assert [(e.epoch, e.hard, e.metric) for e in seen] == [
        (i + 1, kind == "Plain" or (kind in ("DQA", "Binary-Relax") and i > 3), "accuracy")
        for i in range(6)
    ]
    assert (seen[0].soft_score is not None) == (kind in ("DQA", "Binary-Relax"))
    assert seen[-1].soft_score is None
    assert 0.8 < seen[-1].training_score <= 1
    assert (seen[0].temperature is not None) == (kind == "DQA")
    if kind == "Full precision":
        assert result.report is None
        assert told["bits_per_weight"] == 32
    else:
        assert told["off_target"] == 0
        assert told["bits_per_weight"] == 2
        assert {row["quantizer"] for row in told["layers"]} == {"MinMax2"}
        assert all(row["values"] <= 4 for row in told["layers"])
        weights = sum(row["weights"] for row in told["layers"])
        assert 0 < told["parameters"] - weights < 0.2 * weights
    lines = (tmp_path / "run" / "monitors" / "loss.series.txt").read_text().splitlines()
    assert len(lines) == 6


def test_the_deployed_file_takes_plain_pixels(tmp_path):
    """With the recipe's mean and std inside it."""
    result = run(experiment(tmp_path, epochs=1, quantizers="minmax:2"), tmp_path / "r")
    parameters = parameters_of(result.path)
    spread = np.sqrt(parameters["pixels/bn/var"].astype(np.float64) + 1e-5).ravel()
    np.testing.assert_allclose(spread, [0.2, 0.25, 0.3], rtol=1e-6)
    np.testing.assert_allclose(parameters["pixels/bn/mean"].ravel(), [0.4, 0.5, 0.6], rtol=1e-6)
    assert (parameters["pixels/bn/gamma"] == 1).all()
    assert (parameters["pixels/bn/beta"] == 0).all()


def assert_equal_runs(first, second):
    assert result_of(first) == result_of(second)
    network = "network.nnp" if (first / "network.nnp").exists() else "deployed.nnp"
    assert (first / network).read_bytes() == (second / network).read_bytes()
    checkpoints = [read_checkpoint(folder / "checkpoint") for folder in (first, second)]
    assert_same_parameters(checkpoints[0].arrays, checkpoints[1].arrays)
    assert_same_parameters(checkpoints[0].solver.arrays, checkpoints[1].solver.arrays)
    assert checkpoints[0].solver.counts == checkpoints[1].solver.counts
    names = sorted(os.listdir(first / "monitors"))
    assert sorted(os.listdir(second / "monitors")) == names
    for name in names:
        texts = [(folder / "monitors" / name).read_text() for folder in (first, second)]
        assert texts[0] == texts[1], name


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "moments", "number"),
    [
        ("Full precision", [5], signal.SIGTERM),
        ("Plain", [2, 3], signal.SIGINT),
        ("Binary-Relax", [1, 6], signal.SIGINT),
        ("DQA", [4, 1, 2], signal.SIGINT),
    ],
)
def test_stopped_anywhere_and_resumed_it_ends_bit_for_bit(kind, moments, number, tmp_path):
    """With augmentation, within epochs and at their ends, before the hard end and in it."""
    recipe = experiment(tmp_path, epochs=3, **KINDS[kind])
    run(recipe, tmp_path / "straight")
    done = 0
    for i, moment in enumerate(moments):
        stopped = interrupted(moment, recipe, tmp_path / "run", resume=i > 0, number=number)
        done += moment
        assert f"stopped after {done} of 9 steps" in str(stopped.value)
        assert read_checkpoint(tmp_path / "run" / "checkpoint").notes["step"] == done
        assert not (tmp_path / "run" / "result.json").exists()
    run(recipe, tmp_path / "run", resume=True)
    assert_equal_runs(tmp_path / "straight", tmp_path / "run")
    starts = RunFolder(tmp_path / "run").starts()
    assert [start["from_step"] for start in starts] == [0, *np.cumsum(moments)]
    assert json.loads((tmp_path / "run" / "result.json").read_text())["starts"] == starts


@pytest.mark.slow
def test_other_numbers_of_workers_and_epochs_of_their_own_change_nothing(tmp_path):
    made = [experiment(tmp_path, quantizers="minmax:2", data={"workers": n}) for n in (0, 3)]
    for i, recipe in enumerate(made):
        run(recipe, tmp_path / str(i), save_seconds=0.0 if i else 1e9)
    results = [result_of(tmp_path / str(i)) for i in range(2)]
    for result in results:
        del result["recipe"]
    assert results[0] == results[1]
    files = [(tmp_path / str(i) / "deployed.nnp").read_bytes() for i in range(2)]
    assert files[0] == files[1]
    other = run(experiment(tmp_path, quantizers="minmax:2", seed=1), tmp_path / "s")
    assert other.path.read_bytes() != files[0]


def test_a_finished_run_can_be_resumed_and_stays_as_it_is(tmp_path):
    recipe = experiment(tmp_path, quantizers="minmax:2,4")
    run(recipe, tmp_path / "run")
    folder = tmp_path / "run"
    before = (folder / "deployed.nnp").read_bytes(), result_of(folder)
    seen = []
    result = run(recipe, folder, resume=True, on_epoch=seen.append)
    assert seen == []
    assert ((folder / "deployed.nnp").read_bytes(), result_of(folder)) == before
    assert [epoch.epoch for epoch in result.epochs] == [1, 2]
    assert len(RunFolder(folder).starts()) == 2


def test_resumed_without_a_checkpoint_it_begins_at_the_start(tmp_path):
    recipe = experiment(tmp_path, quantizers="minmax:2")
    run(recipe, tmp_path / "straight")
    RunFolder(tmp_path / "run").begin(recipe)
    run(recipe, tmp_path / "run", resume=True)
    assert_equal_runs(tmp_path / "straight", tmp_path / "run")


def test_nothing_is_overwritten(tmp_path):
    recipe = experiment(tmp_path, epochs=1)
    run(recipe, tmp_path / "run")
    files = [p for p in (tmp_path / "run").rglob("*") if p.is_file()]
    before = {path: path.read_bytes() for path in files}
    for resume, seed, expected in ((False, 0, "holds a run"), (True, 4, "seed is 0 there and 4")):
        changed = experiment(tmp_path, epochs=1, seed=seed)
        with pytest.raises(RunError) as error:
            run(changed, tmp_path / "run", resume=resume)
        assert expected in one_line(error)
    with pytest.raises(RunError, match="holds no run"):
        run(recipe, tmp_path / "gone", resume=True)
    assert {path: path.read_bytes() for path in files} == before
    assert not (tmp_path / "gone").exists()


@pytest.mark.parametrize("has_checkpoint", [True, False])
def test_another_recipe_does_not_go_on_with_a_run(has_checkpoint, tmp_path):
    """Without a checkpoint too: the folder's recipe would be that of another run."""
    recipe = experiment(tmp_path)
    interrupted(2, recipe, tmp_path / "run")
    if not has_checkpoint:
        (tmp_path / "run" / "checkpoint").unlink()
    with pytest.raises(RunError) as error:
        run(experiment(tmp_path, learning_rate=0.5), tmp_path / "run", resume=True)
    assert "recipe.learning_rate is 0.05 there and 0.5 here" in one_line(error)


def test_other_images_do_not_go_on_with_a_run(tmp_path):
    recipe = experiment(tmp_path)
    interrupted(2, recipe, tmp_path / "run")
    arrays = dict(np.load(tmp_path / "images.npz"))
    np.savez(tmp_path / "images.npz", x=arrays["x"][::-1], y=arrays["y"][::-1])
    with pytest.raises(CheckpointError, match=r"images\.npz: data\.checksum is"):
        run(recipe, tmp_path / "run", resume=True)


@pytest.mark.parametrize(
    ("changes", "kind"),
    [
        ({"data": {"train": "gone.npz"}}, DataError),
        ({"batch_size": 49}, DataError),
        ({"model": {"channel_last": True}}, RecipeError),
        ({"model": {"name": "resnet18_224"}}, ValueError),
    ],
)
def test_what_cannot_begin_leaves_no_folder_behind(changes, kind, tmp_path):
    """A second try with the right recipe would be told that there is a run."""
    with pytest.raises(kind) as error:
        run(experiment(tmp_path, **changes), tmp_path / "run")
    one_line(error)
    assert not (tmp_path / "run").exists()


BLOWN_UP = {
    ("Full precision", "fc/affine/b"): "loss is nan after 4 steps; * parameter fc/affine/b;",
    ("DQA", "fc/affine/b"): "loss is nan after 4 steps; * parameter fc/affine/b;",
    ("DQA", "stem/conv/W"): "layer stem/conv: W is NaN or infinite",
    # The ReLU of NaN is 0: no loss tells of these two. Backward, NaN spreads.
    ("Full precision", "stage2/block1/conv1/conv/W"): "parameter stem/conv/W is NaN",
    ("DQA", "stage2/block1/conv1/bn/beta"): "parameter stage2/block1/conv1/bn/beta is NaN",
}


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "name"), BLOWN_UP)
def test_a_training_that_blows_up_names_the_place_and_keeps_its_checkpoint(kind, name, tmp_path):
    """A parameter becomes NaN before the fifth update, the second of epoch 2."""
    recipe = experiment(tmp_path, **KINDS[kind])

    def poison(trainable, step):
        if step == 4:
            trainable.parameters()[name].d = np.nan

    with pytest.raises(NonFiniteError) as error:
        run(recipe, tmp_path / "run", on_step=poison)
    message = one_line(error)
    assert all(part in message for part in BLOWN_UP[kind, name].split("*")), message
    assert "learning" in message
    assert read_checkpoint(tmp_path / "run" / "checkpoint").notes["step"] == 3
    (start,) = RunFolder(tmp_path / "run").starts()
    failure = start["failure"]
    assert failure["error"] == message
    # Found in the update, or not before the checkpoint of the epoch.
    assert (failure["step"], len(failure["losses"])) in ((4, 1), (6, 0))
    assert (failure["epoch"], failure["steps_per_epoch"]) == (2, 3)
    if kind == "Full precision":
        run(recipe, tmp_path / "run", resume=True)
        assert ["failure" in start for start in RunFolder(tmp_path / "run").starts()] == [1, 0]
        run(recipe, tmp_path / "straight")
        assert_equal_runs(tmp_path / "straight", tmp_path / "run")


@pytest.mark.parametrize("kind", KINDS)
def test_a_huge_learning_rate_is_one_line(kind, tmp_path):
    recipe = experiment(tmp_path, epochs=9, learning_rate=1e9, **KINDS[kind])
    with pytest.raises(NonFiniteError) as error:
        run(recipe, tmp_path / "run")
    assert "learning" in one_line(error) or "output is NaN" in one_line(error)
    assert not (tmp_path / "run" / "result.json").exists()
    checkpoint = tmp_path / "run" / "checkpoint"
    if checkpoint.exists():
        arrays = read_checkpoint(checkpoint).arrays
        assert all(np.isfinite(array).all() for array in arrays.values())


def test_photos_that_were_left_out_are_told(tmp_path):
    for subset in ("train", "val"):
        for label in ("ant", "bee"):
            for i in range(4):
                write_image(tmp_path / "p" / subset / label / f"{i}.png", (40, 36, 3), seed=i)
    broken = [tmp_path / "p" / name for name in ("train/bee/1.png", "val/ant/0.png")]
    for path in broken:
        path.write_text("no image")
    source = {"train": str(tmp_path / "p"), "augment": "random_resized_crop", "holdout": 0}
    recipe = experiment(
        tmp_path,
        data={**source, "corrupt": "skip"},
        model={"classes": 2},
        batch_size=4,
        quantizers="minmax:2",
    )
    result = run(recipe, tmp_path / "run")
    left_out = [message for message in result.messages if message.startswith("skipped: ")]
    assert len(left_out) == 2
    assert all(str(path) in message for path, message in zip(broken, sorted(left_out)))
    told = result_of(tmp_path / "run")
    assert (told["validation_images"], told["skipped_images"]) == (7, 2)


@pytest.mark.parametrize("kind", ["a file", "class folders"])
def test_data_without_a_part_for_validation_are_refused(kind, tmp_path):
    """Training images would score themselves."""
    keys = {"holdout": 0}
    if kind == "class folders":
        for name in ("cats", "dogs"):
            (tmp_path / "p" / name).mkdir(parents=True)
            for i in range(8):
                write_image(tmp_path / "p" / name / f"{i}.png", (32, 32, 3), seed=i)
        keys.update(train=str(tmp_path / "p"))
    with pytest.raises(DataError, match=r"no part for validation; key 'data.holdout'") as error:
        run(experiment(tmp_path, epochs=1, data=keys), tmp_path / "run")
    one_line(error)
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
@pytest.mark.parametrize("last", [False, True])
def test_ctrl_c_during_an_evaluation(last, tmp_path, monkeypatch):
    """The epoch is kept; after the last one there is nothing to stop."""
    recipe = experiment(tmp_path, quantizers="minmax:2")
    original, count = Task.evaluate, [0]

    def evaluate(self):
        count[0] += 1
        if count[0] == 1 + last:
            signal.raise_signal(signal.SIGINT)
        return original(self)

    with monkeypatch.context() as patch:
        patch.setattr(Task, "evaluate", evaluate)
        if not last:
            with pytest.raises(TrainingStopped, match="stopped after 3 of 6 steps; 3 kept"):
                run(recipe, tmp_path / "run")
        else:
            run(recipe, tmp_path / "run")
    run(recipe, tmp_path / "run", resume=True)
    run(recipe, tmp_path / "straight")
    assert_equal_runs(tmp_path / "straight", tmp_path / "run")


def test_labels_beyond_the_classes_name_data_and_key(tmp_path):
    made = experiment(tmp_path, model={"classes": 2})
    with pytest.raises(DataError) as error:
        run(made, tmp_path / "run")
    start = f"{made.data.train}: column 'y' has the label 2; the network knows 2 classes"
    assert str(error.value).startswith(start)
    assert str(error.value).endswith("; key 'model.classes' says how many there are")


def test_data_and_teacher_may_be_called_otherwise_where_a_run_goes_on(tmp_path):
    """What counts is in them; a checkpoint knows it."""
    teacher = run(experiment(tmp_path, epochs=1), tmp_path / "float").path
    made = experiment(tmp_path, quantizers="minmax:2,4", teacher=str(teacher))
    whole = run(made, tmp_path / "whole")
    interrupted(2, made, tmp_path / "parts")
    (tmp_path / "images.npz").rename(tmp_path / "moved.npz")
    (tmp_path / "float").rename(tmp_path / "old")
    other = (tmp_path / "old" / teacher.name).rename(tmp_path / "old" / "teacher.nnp")
    values = {**made.to_json(), "teacher": str(other)}
    values["data"] = {**values["data"], "train": str(tmp_path / "moved.npz")}
    moved = Recipe.from_mapping(values)
    parts = run(moved, tmp_path / "parts", resume=True)
    assert_same_parameters(parameters_of(parts.path), parameters_of(whole.path))

    interrupted(2, moved, tmp_path / "more")
    with pytest.raises(RunError, match=r"recipe\.teacher is 'a file' there and None here"):
        run(Recipe.from_mapping({**values, "teacher": None}), tmp_path / "more", resume=True)
    write_images(tmp_path / "moved.npz", seed=1)
    with pytest.raises(CheckpointError, match=r"moved\.npz: "):
        run(moved, tmp_path / "more", resume=True)
    write_images(tmp_path / "moved.npz")
    run(experiment(tmp_path, epochs=1, seed=1), tmp_path / "float2")
    changed = Recipe.from_mapping({**values, "teacher": str(tmp_path / "float2" / teacher.name)})
    with pytest.raises(CheckpointError, match="belongs to another training: teacher"):
        run(changed, tmp_path / "more", resume=True)
