"""One update: seeds, weight decay, the scale of the loss, overflows."""

from __future__ import annotations

import itertools

import nnabla as nn
import numpy as np
import pytest

from nnabla_dqa.solver.finite_check import NonFiniteError
from nnabla_dqa.training.checkpoint import read_checkpoint
from nnabla_dqa.training.loop import Loop
from nnabla_dqa.training.loss_scaler import LossScaler
from nnabla_dqa.training.result import TrainingStopped
from nnabla_dqa.training.tasks.task import Task
from nnabla_dqa.training.update import Updater, step_seed
from tests.training.experiments import KINDS, experiment, signal_at
from tests.training.files import assert_same_parameters, one_line

pytestmark = pytest.mark.filterwarnings("ignore::nnabla_dqa.layers.tensors.AttentionWarning")


def arrays_of(job):
    return {name: v.d.copy() for name, v in job.parameters().items()}


def update_once(job, scaler=None, step=0, rate=0.05):
    batch = job.data.at_epoch(0).batch(np.arange(16))
    return Updater(job, scaler)(batch, rate, step, nn.NdArray((1,)))


class Overflowing:
    """The loss of a task, whose backward makes a gradient infinite in some calls, from 0."""

    def __init__(self, task, steps):
        self._task, self._loss, self._steps, self._count = task, task.loss, steps, 0
        task.loss = self

    def backward(self, *arguments, **options):
        self._loss.backward(*arguments, **options)
        if self._count in self._steps:
            self._task.solver.get_parameters()["fc/affine/W"].g = np.inf
        self._count += 1

    def __getattr__(self, name):
        return getattr(self._loss, name)


def test_seeds_of_steps():
    given = itertools.product((0, 1), range(50), (0, 1))
    seeds = [step_seed(seed, step, rank) for seed, step, rank in given]
    assert len(set(seeds)) == len(seeds)
    assert all(0 <= seed < 2**31 for seed in seeds)
    assert step_seed(2**32 - 1, 2**24, 1000) == step_seed(2**32 - 1, 2**24, 1000)
    assert step_seed(3, 4) == step_seed(3, 4, 0)


@pytest.mark.parametrize("kind", KINDS)
def test_a_scale_changes_nothing(kind, tmp_path):
    """In float32, by a power of two: no bit."""
    made = []
    for scaler in (None, LossScaler(scale=1024.0, interval=2)):
        job = Task(experiment(tmp_path, **KINDS[kind]))
        losses = [update_once(job, scaler, step) for step in range(3)]
        made.append((losses, arrays_of(job)))
    assert scaler.scale == 2048
    assert made[0][0] == made[1][0]
    assert_same_parameters(made[0][1], made[1][1])


@pytest.mark.parametrize("kind", KINDS)
def test_an_overflow_updates_nothing_and_the_schedule_goes_on(kind, tmp_path):
    job = Task(experiment(tmp_path, weight_decay=0.1, **KINDS[kind]))
    update_once(job)
    before, solver = arrays_of(job), job.solver.get_states()
    counts = {name: state.t for name, state in solver.items()}
    Overflowing(job, [0])
    scaler = LossScaler(scale=64.0, good=7)
    assert np.isfinite(update_once(job, scaler, 1))
    assert (scaler.scale, scaler.good) == (32, 0)
    after = arrays_of(job)
    changed = {name for name, array in before.items() if (after[name] != array).any()}
    statistics = {name for name in before if name.endswith(("bn/mean", "bn/var"))}
    schedule = {n for n in before if n.endswith(("dqa/temperature", "dqa/omega", "dqa/step"))}
    assert not changed - statistics - schedule
    assert {name: state.t for name, state in job.solver.get_states().items()} == counts
    if kind == "DQA":
        assert {name for name in changed if name.endswith("temperature")}
    if kind in ("DQA", "Binary-Relax"):
        assert job.solver.annealer.step == 2
    update_once(job, scaler, 2)
    assert (scaler.scale, scaler.good) == (32, 1)
    assert (job.parameters()["fc/affine/W"].d != after["fc/affine/W"]).any()


def test_gradients_that_overflow_at_every_scale_are_an_error(tmp_path):
    job = Task(experiment(tmp_path, quantizers="minmax:2"))
    Overflowing(job, range(10))
    scaler = LossScaler(scale=2.0)
    update_once(job, scaler)
    before = arrays_of(job)["fc/affine/W"]
    with pytest.raises(NonFiniteError) as error:
        update_once(job, scaler)
    assert "every loss scale down to 1; lower learning_rate (0.05)" in one_line(error)
    np.testing.assert_array_equal(arrays_of(job)["fc/affine/W"], before)


def loop_of(folder, recipe, name, scaler, overflows):
    (folder / name).mkdir(exist_ok=True)
    job = Task(recipe)
    Overflowing(job, overflows)
    return job, Loop(job, folder / name / "checkpoint", scaler=scaler)


@pytest.mark.parametrize("kind", ["Full precision", "DQA"])
def test_the_scale_is_in_the_checkpoint(kind, tmp_path):
    """Overflows before and after the stop; steps are counted with and without an update."""
    recipe = experiment(tmp_path, **KINDS[kind])
    scaler = LossScaler(scale=64.0, interval=2)
    job, loop = loop_of(tmp_path, recipe, "straight", scaler, [0, 4])
    loop.run()
    straight = arrays_of(job)
    kept = read_checkpoint(tmp_path / "straight" / "checkpoint").notes["scaler"]
    # 64, 32 after the first, 64 after two more, 32 after the fifth.
    assert kept == {"scale": 32.0, "interval": 2, "good": 1}

    scaler = LossScaler(scale=64.0, interval=2)
    job, loop = loop_of(tmp_path, recipe, "run", scaler, [0])
    with pytest.raises(TrainingStopped):
        loop.run(on_step=signal_at(4))
    job, loop = loop_of(tmp_path, recipe, "run", LossScaler(), [0])
    loop.resume()
    loop.run()
    assert read_checkpoint(tmp_path / "run" / "checkpoint").notes["scaler"] == kept
    assert_same_parameters(arrays_of(job), straight)


def test_weight_decay_is_added_to_the_unscaled_gradient(tmp_path):
    made = []
    for scaler in (None, LossScaler(scale=2.0**12)):
        job = Task(experiment(tmp_path, weight_decay=0.5))
        update_once(job, scaler)
        made.append(arrays_of(job)["fc/affine/W"])
    np.testing.assert_allclose(made[0], made[1], rtol=1e-5, atol=1e-7)


def test_a_seed_is_given_only_where_something_draws(tmp_path, monkeypatch):
    """On a GPU it would cost a new generator at each update."""
    job = Task(experiment(tmp_path))
    seeds = []
    monkeypatch.setattr(nn, "seed", seeds.append)
    update_once(job)
    assert seeds == []
    with nn.auto_forward(False):
        job.loss = nn.functions.add2(job.loss, nn.functions.mean(nn.functions.rand(shape=(3,))))
    update_once(job, step=5)
    assert seeds == [step_seed(job.recipe.seed, 5)]


@pytest.mark.parametrize("scaler", [None, LossScaler(scale=64.0)])
@pytest.mark.parametrize("kind", KINDS)
def test_nan_in_one_weight_stops_before_the_update(kind, scaler, tmp_path):
    """By its name, whether the loss is scaled for half precision or not."""
    job = Task(experiment(tmp_path, **KINDS[kind]))
    layers = job.layers
    if not layers:
        return
    update_once(job, scaler)
    layers[2].weight.d[0, 0] = np.nan
    before = arrays_of(job)
    with pytest.raises(NonFiniteError) as error:
        update_once(job, scaler, 1)
    name = layers[2].name
    text = one_line(error)
    assert f"layer {name}: W is NaN" in text or f"parameter {name}/W" in text, text
    trained = job.solver.get_parameters()
    for path, array in arrays_of(job).items():
        if path in trained:
            np.testing.assert_array_equal(array, before[path], err_msg=path)
