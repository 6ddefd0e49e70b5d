"""When a training computes running statistics of batch normalization anew, and from what."""

from __future__ import annotations

import numpy as np
import pytest

import nnabla_dqa as dqa
from nnabla_dqa.recipes.recipe import STATISTICS_SAMPLES, Recipe
from nnabla_dqa.training.run import train
from nnabla_dqa.training.tasks.task import Task
from tests.training.experiments import experiment
from tests.training.files import (
    assert_same_parameters,
    changed,
    interrupted,
    make,
    parameters_of,
    samples,
)

pytestmark = pytest.mark.filterwarnings("ignore::nnabla_dqa.layers.tensors.AttentionWarning")
BN = "BatchNormalization/bn"
STATISTICS = [f"{BN}/mean", f"{BN}/var"]
FIRST_HARD = 10
"""Of 20 steps."""


@pytest.mark.parametrize(
    ("keys", "hard", "deploy"),
    [
        ({}, 0, 0),
        ({"update_normalization": 7}, 0, 7),
        ({"bn_statistics": "off", "update_normalization": 7}, 0, 0),
        ({"bn_statistics": "hard"}, STATISTICS_SAMPLES, 0),
        ({"bn_statistics": "deploy", "update_normalization": 7}, 0, 7),
        ({"bn_statistics": "both"}, STATISTICS_SAMPLES, STATISTICS_SAMPLES),
    ],
)
def test_when_and_from_how_many_samples(keys, hard, deploy):
    recipe = Recipe("-", **keys)
    assert (recipe.statistics_at("hard"), recipe.statistics_at("deploy")) == (hard, deploy)


def test_off_in_yaml(tmp_path):
    """Which YAML reads as false."""
    (tmp_path / "r.yaml").write_text("data: x.npz\nbn_statistics: off\nupdate_normalization: 7\n")
    recipe = Recipe.from_yaml(tmp_path / "r.yaml")
    assert (recipe.bn_statistics, recipe.statistics_at("deploy")) == ("off", 0)


def seen_of(parameters):
    """What normalization sees with the 2-bit weights, over all training samples in float64."""
    w = dqa.MinMax(2).quantize(parameters["Convolution/conv/W"]).astype(np.float64)[:, 0]
    padded = np.pad(samples()[0].astype(np.float64)[:, 0], ((0, 0), (1, 1), (1, 1)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(1, 2))
    h = np.einsum("bijkl,okl->boij", windows, w)
    return h + parameters["Convolution/conv/b"].reshape(1, -1, 1, 1)


def test_as_the_hard_phase_begins(tmp_path):
    """Training on running statistics, which then are those of the low-bit weights."""
    source, recipe = make(tmp_path, epochs=2, hard_fraction=0.5, train_network="MainValidation")
    before = {}
    found = []

    def record(task, step):
        if step == FIRST_HARD:
            before.update({n: v.d.copy() for n, v in task.parameters().items()})
        if step == FIRST_HARD + 1:
            found.append({n: task.parameters()[n].d.copy() for n in STATISTICS})

    train(source, recipe, tmp_path / "a.nnp")
    anew = changed(recipe, bn_statistics="hard")
    train(source, anew, tmp_path / "b.nnp", on_step=record)
    h = seen_of(before)
    mean, variance = (found[0][name].ravel() for name in STATISTICS)
    np.testing.assert_allclose(mean, h.mean(axis=(0, 2, 3)), atol=1e-5)
    np.testing.assert_allclose(variance, h.var(axis=(0, 2, 3), ddof=1), rtol=1e-4)
    old, new = (parameters_of(tmp_path / f"{name}.nnp") for name in "ab")
    assert (new["Affine/affine/W"] != old["Affine/affine/W"]).any()
    assert (before[STATISTICS[0]] == old[STATISTICS[0]]).all()

    for step in (FIRST_HARD, FIRST_HARD + 1):
        target = tmp_path / f"{step}.nnp"
        interrupted(step, source, anew, target)
        train(source, anew, target, resume=True)
        assert_same_parameters(parameters_of(target), new)


def test_training_on_batch_statistics_does_not_depend_on_running_ones(tmp_path):
    source, recipe = make(tmp_path, epochs=2)
    train(source, recipe, tmp_path / "a.nnp")
    train(source, changed(recipe, bn_statistics="both"), tmp_path / "b.nnp")
    old, new = (parameters_of(tmp_path / f"{name}.nnp") for name in "ab")
    assert [name for name in old if (old[name] != new[name]).any()] == STATISTICS


@pytest.mark.parametrize("quantizers", ["minmax:2", "sawb:2,4,8"])
def test_on_onednn_and_by_nnabla(tmp_path, quantizers):
    """The same numbers but for rounding, of every layer."""
    found = []
    for layers in ("auto", "nnabla"):
        with dqa.backend(layers=layers):
            task = Task(experiment(tmp_path, quantizers=quantizers))
            task.estimate_statistics(48)
        arrays = {n: v.d.copy() for n, v in task.parameters().items()}
        found.append({n: a for n, a in arrays.items() if n.endswith(("bn/mean", "bn/var"))})
    assert len(found[0]) > 10
    for name, array in found[0].items():
        close = dict(rtol=1e-3, atol=1e-4 * float(np.abs(found[1][name]).max()))
        np.testing.assert_allclose(array, found[1][name], err_msg=name, **close)


@pytest.mark.parametrize(("fraction", "told"), [(0.5, False), (0.0, True)])
def test_without_a_hard_phase_there_is_nothing_to_begin(tmp_path, fraction, told):
    source, recipe = make(tmp_path, epochs=1, bn_statistics="hard", hard_fraction=fraction)
    result = train(source, recipe, tmp_path / "a.nnp")
    assert ("key 'bn_statistics' of the recipe has no effect here" in result.messages) == told
