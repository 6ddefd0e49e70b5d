"""What one of two processes does when the other wants something; the other is played."""

from __future__ import annotations

import numpy as np
import pytest

from nnabla_dqa.data.sampler import batches_of
from nnabla_dqa.distributed import ParallelError, SingleProcess
from nnabla_dqa.solver.finite_check import NonFiniteError
from nnabla_dqa.training import loop as loops
from nnabla_dqa.training.checkpoint import read_checkpoint
from nnabla_dqa.training.loop import Loop
from nnabla_dqa.training.result import TrainingStopped
from nnabla_dqa.training.run import train
from nnabla_dqa.training.tasks.task import Task
from tests.training.experiments import experiment
from tests.training.files import make, one_line

pytestmark = pytest.mark.filterwarnings("ignore::nnabla_dqa.layers.tensors.AttentionWarning")


class Echo(SingleProcess):
    """The first of two processes; the other one has equal gradients, and does as it is told.

    ``wish`` is called with the number of an update, counted from 1, and the
    arrays that are averaged in it: gradients, then the loss, then what the
    processes want.
    """

    size = 2

    def __init__(self, wish=lambda *_: None):
        self.updates = 0
        self.wish = wish

    def average(self, arrays):
        if len(arrays) > 2 and arrays[-2].shape == ():
            self.updates += 1
            self.wish(self.updates, arrays)

    def gather(self, value):
        return [value, value]


def loop_with(folder, wish=lambda *_: None, **changes):
    job = Task(experiment(folder, **changes), Echo(wish))
    return job, Loop(job, folder / "checkpoint")


def add(array, values):
    array.data = array.data + np.array(values, np.float32)


def test_each_process_takes_its_half_of_every_mini_batch(tmp_path, monkeypatch):
    job, loop = loop_with(tmp_path, epochs=1, data={"augment": "none"})
    seen = []
    original = Task.fill

    def fill(self, batch):
        seen.append(batch["x"].copy())
        original(self, batch)

    monkeypatch.setattr(Task, "fill", fill)
    (epoch,) = loop.run()
    expected = batches_of(48, 16, 0, 0, 0, (0, 2))
    assert [len(batch) for batch in seen] == [8, 8, 8]
    for batch, rows in zip(seen, expected):
        np.testing.assert_array_equal(batch, job.data.batch(rows)["x"])
    assert 0 <= epoch.training_score <= 1


def test_the_other_process_is_asked_to_stop(tmp_path):
    def wish(update, arrays):
        if update == 4:
            add(arrays[-1], [0.5, 0])

    _, loop = loop_with(tmp_path, wish, epochs=3)
    with pytest.raises(TrainingStopped, match="stopped after 4 of 9 steps"):
        loop.run()
    assert read_checkpoint(tmp_path / "checkpoint").notes["step"] == 4


def test_the_other_process_wants_to_save(tmp_path, monkeypatch):
    def wish(update, arrays):
        if update in (1, 5):
            add(arrays[-1], [0, 0.5])

    _, loop = loop_with(tmp_path, wish)
    saved = []
    original = loops.write_checkpoint

    def write(path, arrays, solver, notes):
        saved.append(notes["step"])
        original(path, arrays, solver, notes)

    monkeypatch.setattr(loops, "write_checkpoint", write)
    loop.run()
    assert saved == [1, 3, 5, 6]


def test_the_loss_of_the_other_process_is_not_finite(tmp_path):
    def wish(update, arrays):
        if update == 2:
            add(arrays[-2], np.nan)

    _, loop = loop_with(tmp_path, wish, quantizers="minmax:2")
    with pytest.raises(NonFiniteError) as error:
        loop.run()
    assert "the loss is nan after 1 steps" in one_line(error)


def test_running_ranges_are_those_of_all_processes(tmp_path):
    """Averaged like gradients: the other process has seen a maximum that is larger by one."""
    seen = []

    def wish(update, arrays):
        ranges = [a for a in arrays if a.shape == (1, 3)]
        assert ranges
        if update == 1:
            for array in ranges:
                add(array, [0, 0.5, 0])
            seen.extend(array.data.copy() for array in ranges)

    job, loop = loop_with(
        tmp_path, wish, epochs=1, quantizers="minmax:2", activations="emaminmax:2,decay=0.0"
    )
    updates = []
    original = loop._update

    def update(*arguments):
        result = original(*arguments)
        if not updates:
            layers = [layer for layer in job.layers if layer.running]
            updates.extend(layer.state["emaminmax/range"].d.copy() for layer in layers)
        return result

    update.scaler = original.scaler
    loop._update = update
    loop.run()
    assert len(seen) == len(updates) > 1
    found, expected = (sorted(a.ravel().tolist() for a in arrays) for arrays in (updates, seen))
    np.testing.assert_allclose(found, expected, rtol=1e-6)


@pytest.mark.parametrize(
    ("keys", "name"),
    [
        ({}, "stem/conv/W"),
        ({}, "fc/affine/b"),
        ({"quantizers": "minmax:2"}, "fc/affine: the weights"),
        ({"quantizers": "minmax:2,4,8"}, "fc/affine: temperature"),
        ({"quantizers": "minmax:2,4,8"}, "stem/bn/beta"),
    ],
)
def test_processes_that_differ_are_stopped_before_anything_is_written(keys, name, tmp_path):
    """A float network too."""
    job, loop = loop_with(tmp_path, **keys)

    def gather(value):
        other = {**value, name: "another"} if isinstance(value, dict) and name in value else value
        return [value, other]

    job.communicator.gather = gather
    with pytest.raises(ParallelError) as error:
        loop.run()
    assert f"{name} is not the same in all processes" in one_line(error)
    assert not (tmp_path / "checkpoint").exists()


@pytest.mark.parametrize("environment", [{"PMI_SIZE": "2"}, {"RANK": "0", "WORLD_SIZE": "2"}])
def test_one_of_several_processes_is_not_trained_alone(environment, tmp_path, monkeypatch):
    """From Python too, where no communicator was given."""
    recipe = experiment(tmp_path)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    for start in (
        lambda: train(recipe, folder=tmp_path / "run"),
        lambda: Task(recipe),
    ):
        with pytest.raises(ParallelError, match="started 2 processes and this training was given"):
            start()
    assert not (tmp_path / "run").exists()
    source, file_recipe = make(tmp_path)
    with pytest.raises(ParallelError, match="started 2 processes and this training was given"):
        train(source, file_recipe, tmp_path / "out.nnp")
    assert Task(recipe, SingleProcess()).communicator.size == 1
