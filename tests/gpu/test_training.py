"""Trainings in a context: the loss falls, they resume, and what they deploy runs on the CPU."""

from __future__ import annotations

import warnings

import nnabla as nn
import nnabla.parametric_functions as PF
import numpy as np
import pytest

import nnabla_dqa as dqa
from nnabla_dqa.backends.fused import quantizers_of
from nnabla_dqa.data import open_data
from nnabla_dqa.solver.finite_check import NonFiniteError
from nnabla_dqa.training.checkpoint import read_checkpoint
from nnabla_dqa.training.loss_scaler import LossScaler
from nnabla_dqa.training.run import recipe_of, train
from nnabla_dqa.training.tasks.task import Task
from nnabla_dqa.training.update import Updater
from tests.gpu.conftest import CPU, get, has_kernels, on_cpu
from tests.gpu.functions import foreign_functions
from tests.gpu.runs import experiment
from tests.training.experiments import interrupted, run
from tests.training.files import make, one_line, parameters_of


def losses(result):
    return [epoch.loss for epoch in result.epochs]


def accuracy_on_the_cpu(result, source):
    """Of the deployed file over the validation images, in plain NNabla."""
    data = open_data(source, "validation")
    batch = data.batch(np.arange(len(data)))
    x = batch["x"]
    with nn.context_scope(CPU):
        y = nn.graph_def.load(str(result.path))(nn.Variable.from_numpy_array(x))
        y.forward(clear_buffer=True)
    return np.mean(y.d.argmax(1) == batch["y"][:, 0])


def check_deployed_weights(folder, result):
    """Four values a layer: those of the quantizer for the weights that were trained, on the CPU."""
    trained = read_checkpoint(folder / "checkpoint").arrays
    deployed = parameters_of(result.path)
    names = [name for name in deployed if name.endswith("/W")]
    assert len(names) == len(result.report.layers)
    for name in names:
        assert len(np.unique(deployed[name])) <= 4
        w = trained[name]
        if w.shape != deployed[name].shape:
            w = w.transpose(0, 3, 1, 2)
        np.testing.assert_array_equal(deployed[name], dqa.MinMax(2).quantize(w))


def test_training_and_deploying(context, tmp_path):
    recipe = experiment(tmp_path)
    result = run(recipe, tmp_path / "run", context=context)
    first, *_, last = losses(result)
    assert last < 0.8 * first
    check_deployed_weights(tmp_path / "run", result)
    images = 0 if on_cpu(context) else 1
    stated = pytest.approx(result.deployed_score, abs=images / 40 + 1e-9)
    assert accuracy_on_the_cpu(result, recipe.data.train) == stated


def test_resuming(context, tmp_path):
    recipe = experiment(tmp_path, epochs=2)
    interrupted(7, recipe, tmp_path / "run", context=context)
    resumed = run(recipe, tmp_path / "run", resume=True, context=context)
    whole = run(recipe, tmp_path / "whole", context=context)
    # A GPU adds up in another order each time, unless it is told not to.
    tolerance = 0 if on_cpu(context) else 0.05
    np.testing.assert_allclose(losses(resumed), losses(whole), rtol=tolerance)
    if on_cpu(context):
        assert resumed.path.read_bytes() == whole.path.read_bytes()


@pytest.mark.parametrize(
    ("name", "channel_last"),
    [
        ("cpu", False),
        pytest.param("cudnn", False, marks=pytest.mark.gpu),
        pytest.param("cudnn", True, marks=pytest.mark.gpu),
    ],
)
def test_half_precision(name, channel_last, tmp_path):
    """NNabla's CPU takes a second for each update in half precision: there the net is tiny."""
    context = get(name, "half")
    recipe = experiment(tmp_path, {"channel_last": channel_last}, epochs=6)
    if on_cpu(context):
        few = {**recipe.to_json()["data"], "limit": 40}
        recipe = experiment(tmp_path, {"width": 0.08}, epochs=2, data=few)
    result = run(recipe, tmp_path / "run", context=context)
    first, *_, last = losses(result)
    assert np.isfinite(losses(result)).all()
    assert last < first
    check_deployed_weights(tmp_path / "run", result)
    # What is deployed has its channels first, whatever was trained.
    stated = pytest.approx(result.deployed_score, abs=1 / 40 + 1e-9)
    assert accuracy_on_the_cpu(result, recipe.data.train) == stated


@pytest.mark.parametrize(
    ("name", "channel_last"),
    [
        ("cpu", False),
        pytest.param("cudnn", False, marks=pytest.mark.gpu),
        pytest.param("cudnn", True, marks=pytest.mark.gpu),
    ],
)
@pytest.mark.parametrize("file", ["network.nnp", "checkpoint"])
def test_a_float_net_teaches(name, channel_last, file, tmp_path):
    """Whatever the order of its channels."""
    context = get(name, "float")
    model = {"channel_last": channel_last}
    run(experiment(tmp_path, model, quantizers=None), tmp_path / "float", context=context)
    recipe = experiment(tmp_path, model, teacher=str(tmp_path / "float" / file))
    result = run(recipe, tmp_path / "run", context=context)
    first, *_, last = losses(result)
    assert last < first
    check_deployed_weights(tmp_path / "run", result)


@pytest.mark.parametrize("backend", ["auto", "portable"])
def test_half_precision_is_only_that_of_the_layers(half_context, tmp_path, backend):
    """Quantizers, attention, penalty, loss: float32. Convolutions: half."""
    with nn.context_scope(half_context), dqa.backend(backend):
        job = Task(experiment(tmp_path))
    found, mixtures = {}, []

    def look(f):
        if quantizers_of(f):
            # Its own context is one of NNabla's for all functions written in Python.
            mixtures.append(f)
            return
        half = any(":half" in backend for backend in f.context.backend)
        found.setdefault(f.info.type_name, set()).add(half)

    job.loss.visit(look)
    assert found["Convolution"] == found["BatchNormalization"] == {True}
    assert bool(mixtures) == (backend == "auto" and has_kernels(half_context))
    kinds = ["Slice", "Concatenate"]
    if not mixtures:
        kinds += ["Softmax", "Round", "Min", "Max", "ClipGradByValue", "BatchMatmul"]
    for kind in kinds:
        assert found[kind] == {False}, kind
    assert found["SoftmaxCrossEntropy"] == found["Mean"] == {False}
    for f in mixtures:
        for v in f.outputs:
            v.persistent = True
    job.fill(job.data.at_epoch(0).batch(np.arange(20)))
    job.loss.forward()
    assert all(v.data.dtype == np.float32 for f in mixtures for v in (*f.inputs, *f.outputs))


@pytest.mark.parametrize("type_config", ["float", "half"])
@pytest.mark.parametrize("name", ["cpu", pytest.param("cudnn", marks=pytest.mark.gpu)])
def test_nan_in_one_weight_stops_before_the_update(name, type_config, tmp_path):
    with nn.context_scope(get(name, type_config)):
        job = Task(experiment(tmp_path, {"width": 0.08}))
        update = Updater(job, LossScaler(64.0) if type_config == "half" else None)
        batch, shared = job.data.at_epoch(0).batch(np.arange(20)), nn.NdArray((1,))
        shared.zero()
        update(batch, 0.01, 0, shared)
        layer = job.layers[3]
        layer.weight.d[0, 0] = np.nan
        before = {k: v.d.copy() for k, v in job.solver.get_parameters().items()}
        with pytest.raises(NonFiniteError) as error:
            update(batch, 0.01, 1, shared)
        assert layer.name in str(error.value)
        for k, v in job.solver.get_parameters().items():
            np.testing.assert_array_equal(v.d, before[k], err_msg=k)


@pytest.mark.gpu
def test_convolutions_are_cudnns():
    """Without cuDNN's library NNabla takes functions of its own, with a line in the log."""
    with nn.context_scope(get("cudnn")):
        h = PF.convolution(nn.Variable((2, 3, 8, 8)), 4, (3, 3))
        assert h.parent.name.endswith("Cudnn"), h.parent.name


def test_no_function_of_a_training_leaves_the_device(context, tmp_path):
    for number, quantizers in enumerate(["minmax:2,4,8", "sawb:2,4", "bwn/twn/fp"]):
        with nn.context_scope(context), warnings.catch_warnings():
            warnings.simplefilter("ignore", dqa.AttentionWarning)
            job = Task(experiment(tmp_path, quantizers=quantizers))
        assert foreign_functions(job.loss, context) == set(), number
        assert foreign_functions(job.objective.hard.output, context) == set(), number


def test_a_loss_that_explodes_stops_the_training(context, tmp_path):
    recipe = experiment(tmp_path, learning_rate=1e30)
    with pytest.raises(NonFiniteError) as error, np.errstate(all="ignore"):
        run(recipe, tmp_path / "run", context=context)
    assert "NaN" in one_line(error) or "inf" in one_line(error)
    assert not (tmp_path / "run" / "deployed.nnp").exists()


def test_a_file_trains_in_the_context(context, tmp_path):
    source, recipe = make(tmp_path)
    result = train(source, recipe, tmp_path / "trained.nnp", context=context)
    assert losses(result)[-1] < losses(result)[0]
    assert result.epochs[-1].score > 0.9
    assert all(np.isfinite(array).all() for array in parameters_of(result.path).values())


@pytest.mark.parametrize("loss", ["file", "distillation"])
def test_a_file_trains_in_half_precision(half_context, loss, tmp_path):
    """Weights and scores stay those of float32: what is deployed scores as training said."""
    source, recipe = make(tmp_path, loss=loss, epochs=3)
    result = run(recipe_of(source, recipe), tmp_path / "run", context=half_context)
    assert losses(result)[-1] < losses(result)[0]
    assert result.deployed_score == pytest.approx(result.score, abs=0.02)
    assert all(np.isfinite(array).all() for array in parameters_of(result.path).values())
