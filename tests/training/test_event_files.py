"""TensorBoard event files: what stands in them, also after every kind of stop; their cost."""

from __future__ import annotations

import csv
import os
import sys
import time

import nnabla as nn
import numpy as np
import pytest
import yaml

from nnabla_dqa.cli import main
from nnabla_dqa.distributed import SingleProcess
from nnabla_dqa.regularization import regularizer
from nnabla_dqa.training import event_files as module
from nnabla_dqa.training import loop as loops
from nnabla_dqa.training.event_files import Attention, EventFiles, event_files
from nnabla_dqa.training.loop import Loop
from nnabla_dqa.training.run import train
from nnabla_dqa.training.state import Progress
from nnabla_dqa.training.tasks.task import Task
from tests.training.events import curves, events
from tests.training.experiments import KINDS, experiment, interrupted, recipe, run
from tests.training.files import make, one_line

pytestmark = pytest.mark.filterwarnings("ignore::nnabla_dqa.layers.tensors.AttentionWarning")
DQA = {"quantizers": "minmax:2,4,8", "epochs": 4}
"""Three steps an epoch; of twelve the last five (rounded) are hard."""


def series(folder, name):
    """The values of one of NNabla's monitor files."""
    lines = (folder / f"{name}.series.txt").read_text().splitlines()
    return [float(line.split()[1]) for line in lines]


def straight(folder, **options):
    """The curves of a run in ``folder``."""
    run(experiment(folder, **{**DQA, **options}), folder / "run", tensorboard=True)
    return curves(folder / "run" / "monitors")


@pytest.mark.slow
def test_the_curves_are_those_of_the_monitor_files(tmp_path):
    found = straight(tmp_path)
    folder = tmp_path / "run" / "monitors"
    names = ["loss", "score", "error", "training-error", "learning-rate", "temperature"]
    for name in [*names, "soft-score"]:
        values = found[f"epoch/{name.replace('-', '_')}"]
        assert list(values) == [3, 6, 9, 12][: len(values)]
        np.testing.assert_allclose(list(values.values()), series(folder, name), rtol=1e-4)
    with (folder / "attention.csv").open() as stream:
        rows = list(csv.reader(stream))
    layers = {name for _, name, *_ in rows}
    assert len(layers) == 8
    tags = {f"attention/{layer}/MinMax{bits}" for layer in layers for bits in (2, 4, 8)}
    assert {tag for tag in found if tag.startswith("attention/")} == tags
    for epoch, layer, *shares in rows:
        at = [found[f"attention/{layer}/MinMax{bits}"][3 * int(epoch)] for bits in (2, 4, 8)]
        np.testing.assert_allclose(at, [float(a) for a in shares], rtol=1e-6)
    assert {tag: list(values) for tag, values in found.items() if tag[:6] != "epoch/"} == {
        tag: list(range(1, 13)) for tag in found if tag[:6] != "epoch/"
    }


@pytest.mark.slow
def test_the_values_of_each_update(tmp_path):
    made = experiment(tmp_path, **DQA, lr_schedule="cosine", **{"lambda": 3.0})
    seen = []

    def before(task, step):
        with nn.parameter_scope("", task.scope), nn.auto_forward():
            state = next(layer.state for layer in task.layers if layer.mixture.is_mixed)
            seen.append((float(state["temperature"].d[0]), float(regularizer(3.0).d)))

    result = run(made, tmp_path / "run", tensorboard=True, on_step=before)
    found = curves(tmp_path / "run" / "monitors")
    rates = [made.learning_rate_at(step / 12) for step in range(12)]
    np.testing.assert_allclose(list(found["training/learning_rate"].values()), rates, rtol=1e-6)
    # Before the next update is after this one.
    for name, column in (("temperature", 0), ("penalty", 1)):
        values = list(found[f"training/{name}"].values())[:-1]
        np.testing.assert_allclose(values, [row[column] for row in seen[1:]], rtol=1e-5)
    assert list(found["training/hard_phase"].values()) == [0.0] * 7 + [1.0] * 5
    losses = np.reshape(list(found["training/loss"].values()), (4, 3))
    np.testing.assert_allclose(losses.mean(1), [e.loss for e in result.epochs], rtol=1e-5)


@pytest.mark.slow
def test_a_longer_training_has_fewer_points_that_lose_no_loss(tmp_path, monkeypatch):
    for name in "ab":
        (tmp_path / name).mkdir()
    every = straight(tmp_path / "a")
    monkeypatch.setattr(module, "POINTS", 3)
    few = straight(tmp_path / "b")
    loss = list(every["training/loss"].values())
    # Every fourth, the ends of epochs, and both sides of where the hard phase begins.
    assert list(few["training/loss"]) == [3, 4, 6, 7, 8, 9, 12]
    means = [np.mean(loss[a:b]) for a, b in ((0, 3), (3, 4), (4, 6), (6, 7), (7, 8), (8, 9))]
    values = list(few["training/loss"].values())
    np.testing.assert_allclose(values, [*means, np.mean(loss[9:])], rtol=1e-6)
    assert few["epoch/loss"] == every["epoch/loss"]


@pytest.mark.slow
@pytest.mark.parametrize("moments", [[2], [3], [4, 1, 5]])
def test_stopped_and_resumed_no_step_is_doubled_or_lost(moments, tmp_path):
    expected = straight(tmp_path)
    made, folder = experiment(tmp_path, **DQA), tmp_path / "stopped"
    for i, moment in enumerate(moments):
        interrupted(moment, made, folder, resume=i > 0, tensorboard=i == 0)
    # A run that has event files goes on with them.
    run(made, folder, resume=True)
    assert curves(folder / "monitors") == expected
    assert len(event_files(folder / "monitors")) == len(moments) + 1


@pytest.mark.slow
def test_what_was_written_after_the_checkpoint_is_superseded(tmp_path, monkeypatch):
    """A process that dies: within an epoch, and between an epoch's values and its checkpoint."""
    expected = straight(tmp_path)
    made, folder = experiment(tmp_path, **DQA), tmp_path / "dead"

    def die_at(step):
        def on_step(_, done):
            if done == step:
                raise MemoryError("dead")

        return on_step

    with pytest.raises(MemoryError):
        run(made, folder, tensorboard=True, on_step=die_at(5))
    assert max(curves(folder / "monitors")["training/loss"]) == 5

    def write(path, arrays, solver, notes):
        if not notes["losses"]:
            raise MemoryError("dead")
        kept(path, arrays, solver, notes)

    kept = loops.write_checkpoint
    monkeypatch.setattr(loops, "write_checkpoint", write)
    with pytest.raises(MemoryError):
        run(made, folder, resume=True, save_seconds=0)
    assert 6 in curves(folder / "monitors")["epoch/loss"]
    monkeypatch.undo()
    run(made, folder, resume=True)
    assert curves(folder / "monitors") == expected


@pytest.mark.slow
def test_begun_later_they_begin_with_the_epochs_done(tmp_path):
    expected = straight(tmp_path)
    made, folder = experiment(tmp_path, **DQA), tmp_path / "late"
    interrupted(8, made, folder)
    assert event_files(folder / "monitors") == []
    run(made, folder, resume=True, tensorboard=True)
    found = curves(folder / "monitors")
    for tag, values in expected.items():
        steps = set(values) if tag.startswith("epoch/") else set(range(8, 13))
        if tag.startswith("attention/") or tag == "training/temperature":
            steps |= {3, 6}
        assert found[tag] == {step: v for step, v in values.items() if step in steps}, tag


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["Full precision", "Plain", "Binary-Relax"])
def test_other_methods_have_the_curves_that_there_are(kind, tmp_path):
    found = straight(tmp_path, **{"quantizers": None, "epochs": 2, **KINDS[kind]})
    names = {tag for tag in found if tag.startswith("training/")}
    mixed = {"training/hard_phase"} if kind == "Binary-Relax" else set()
    assert names == {"training/loss", "training/learning_rate"} | mixed
    assert any(tag.startswith("attention/") for tag in found) == (kind == "Binary-Relax")


@pytest.mark.slow
def test_a_training_anew_in_a_folder_of_monitor_files_supersedes_the_old_one(tmp_path):
    source, made = make(tmp_path, epochs=2)
    for number in (1, 2):
        train(source, made, tmp_path / "o.nnp", monitor=tmp_path / "m", tensorboard=True)
        assert len(event_files(tmp_path / "m")) == number
        assert list(curves(tmp_path / "m")["epoch/loss"]) == [10, 20]


@pytest.mark.slow
def test_only_the_first_process_writes(tmp_path):
    class Second(SingleProcess):
        """The second of two that have the same gradients."""

        rank, size = 1, 2

        def average(self, arrays):
            pass

        def gather(self, value):
            return [value, value]

    task = Task(experiment(tmp_path, **DQA), Second())
    Loop(task, tmp_path / "checkpoint").run(monitor=tmp_path / "m", tensorboard=True)
    assert not (tmp_path / "m").exists()


def test_a_chart_shows_the_quantizers_of_a_layer_together(tmp_path):
    from tensorboardX.proto.layout_pb2 import Layout

    task = Task(experiment(tmp_path, **DQA))
    with EventFiles(tmp_path / "m", task, Progress()):
        pass
    *_, last = events(tmp_path / "m")
    (value,) = last.summary.value
    (category,) = Layout.FromString(value.tensor.string_val[0]).category
    assert len(category.chart) == 8
    first = category.chart[0]
    name = first.title
    assert list(first.multiline.tag) == [f"^attention/{name}/MinMax{b}$" for b in (2, 4, 8)]


def test_files_keep_their_order_whatever_the_clock_says(tmp_path, monkeypatch):
    task = Task(experiment(tmp_path, **DQA))
    for seconds in (1.7e9, 1.7e9, 1.6e9):
        monkeypatch.setattr(module.time, "time", lambda s=seconds: s)
        with EventFiles(tmp_path, task, Progress()):
            pass
    names = [path.name.split(".")[3:5] for path in event_files(tmp_path)]
    assert names == [["1700000000", f"000{i}"] for i in range(3)]


@pytest.mark.parametrize("mixing", ["attention", "binary_relax"])
def test_attention_of_many_layers_is_that_of_each(mixing, tmp_path):
    task = Task(experiment(tmp_path, quantizers="minmax:2,4", mixing=mixing))
    layers = [layer for layer in task.layers if layer.mixture.is_mixed]
    table = Attention(layers)
    rng = np.random.RandomState(0)
    for hard in (None, 1):
        for layer in layers:
            layer.set_hard(hard)
            if "alpha" in layer.state:
                layer.state["alpha"].d = rng.randn(*layer.state["alpha"].shape)
        learned, used = table.values()
        for layer, a, b in zip(layers, learned, used):
            np.testing.assert_array_equal(a, layer.attention())
            np.testing.assert_array_equal(b, layer.coefficients())


def test_a_point_costs_little(tmp_path):
    """Of a ResNet-20 with three quantizers a layer; docs/experiments.md says how much."""
    model = {"name": "resnet20_32"}
    task = Task(experiment(tmp_path, **DQA, model=model))
    seconds = []
    with EventFiles(tmp_path / "m", task, Progress()) as files:
        for step in range(1, 31):
            start = time.perf_counter()
            files.update(Progress(step=step, losses=[1.0] * step))
            seconds.append(time.perf_counter() - start)
    assert min(seconds) < 0.01


def test_without_tensorboardx_one_line_names_the_extra(tmp_path, monkeypatch, capsys):
    (tmp_path / "r.yaml").write_text(yaml.safe_dump(recipe(tmp_path, **DQA)))
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    command = ["train", "--recipe", str(tmp_path / "r.yaml"), "--tensorboard"]
    assert main([*command, "-o", str(tmp_path / "run")]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert "tensorboardX" in line
    assert line.endswith("pip install 'nnabla_dqa[monitor]'")
    assert "run" not in os.listdir(tmp_path)


def test_there_must_be_a_folder(tmp_path, capsys):
    source, made = make(tmp_path)
    with pytest.raises(ValueError, match="tensorboard: a folder or monitor is needed") as error:
        train(source, made, tmp_path / "out.nnp", tensorboard=True)
    one_line(error)
    (tmp_path / "r.yaml").write_text("data: train.npz\n")
    command = ["train", str(source), "--recipe", str(tmp_path / "r.yaml"), "--tensorboard"]
    assert main(command) == 2
    assert "--tensorboard: name the folder of a run" in capsys.readouterr().err
