"""Training with a float network as teacher: the loss, the files it can be, what is refused."""

from __future__ import annotations

import json

import nnabla as nn
import nnabla.functions as F
import nnabla.parametric_functions as PF
import nnabla.solvers as S
import numpy as np
import pytest
from nnabla.utils.save import save

import nnabla_dqa as dqa
from nnabla_dqa.export.metadata import PACKED
from nnabla_dqa.graph.traverse import LiveGraph
from nnabla_dqa.nnp.file import NetworkFile
from nnabla_dqa.nnp.live import Program
from nnabla_dqa.nnp_format.archive import Archive
from nnabla_dqa.nnp_format.members import NNPError
from nnabla_dqa.recipes.recipe import DISTILLATION_WEIGHT, Recipe, RecipeError
from nnabla_dqa.training.checkpoint import CheckpointError, read_checkpoint, write_checkpoint
from nnabla_dqa.training.run import train
from nnabla_dqa.training.tasks.task import Task
from nnabla_dqa.training.update import Updater
from tests.training.experiments import (
    CLASSES,
    KINDS,
    experiment,
    interrupted,
    recipe,
    result_of,
    run,
)
from tests.training.files import (
    assert_same_parameters,
    classifier,
    convert,
    make,
    one_line,
    parameters_of,
    write_console,
    write_plain,
    write_samples,
)

pytestmark = pytest.mark.filterwarnings("ignore::nnabla_dqa.layers.tensors.AttentionWarning")
WIDER = {"model": {"width": 0.5}}
HALF = nn.Context(["cpu:half", "cpu:float"], "CpuCachedArray", "0")


@pytest.fixture(scope="module")
def taught(tmp_path_factory):
    """A float run of the model, and one of a wider one that is quantized."""
    folder = tmp_path_factory.mktemp("teacher")
    run(experiment(folder), folder / "float")
    run(experiment(folder, **WIDER), folder / "wide")
    run(experiment(folder, quantizers="minmax:2"), folder / "low")
    scope: dict = {}
    with nn.parameter_scope("", scope):
        for name, array in read_checkpoint(folder / "float" / "checkpoint").arrays.items():
            nn.parameter.set_parameter(name, nn.Variable.from_numpy_array(array))
        nn.save_parameters(str(folder / "float.h5"))
    return folder


def log_softmax(z):
    z = z - z.max(axis=1, keepdims=True)
    return z - np.log(np.exp(z).sum(axis=1, keepdims=True))


def logits_of(path, x):
    """The logits of a float NNP on running statistics, by NNabla's functions."""
    program = Program(NetworkFile.read(path))
    network = program.file.archive.definition.network[0].name
    with dqa.backend(layers="nnabla"):
        built = program.build(network, len(x), batch_stat=False)
        next(iter(built.inputs.values())).d = x
        output = next(iter(built.outputs.values()))
        output.forward()
    return output.d.astype(np.float64)


def loss_of(task, batch):
    task.fill(batch)
    task.loss.forward()
    return float(task.loss.d)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("weight", "temperature"), [(None, 2.0), (0.9, 1.0), (1.0, 4.0)])
def test_the_loss_of_labels_and_teacher(taught, kind, weight, temperature):
    """Against numpy, with the teacher's own running statistics: (1 - w) CE + w T^2 KL."""
    path = taught / "wide" / "network.nnp"
    keys = {"teacher": str(path), "distillation_temperature": temperature, **KINDS[kind]}
    keys.update({} if weight is None else {"distillation_weight": weight}, **{"lambda": 0})
    task = Task(experiment(taught, **keys))
    batch = task.data.at_epoch(0).batch(np.arange(16))
    loss = loss_of(task, batch)
    student = task.objective.scores.d.astype(np.float64)
    labels = batch["y"].ravel().astype(int)
    entropy = -log_softmax(student)[np.arange(16), labels].mean()
    goal, own = (log_softmax(z / temperature) for z in (logits_of(path, batch["x"]), student))
    divergence = temperature**2 * (np.exp(goal) * (goal - own)).sum(axis=1).mean()
    w = DISTILLATION_WEIGHT if weight is None else weight
    assert loss == pytest.approx((1 - w) * entropy + w * divergence, rel=1e-4)


def test_the_gradient_of_the_scores(taught):
    """``((1 - w) (p - y) + w T (p_T - q_T)) / B``: as if the teacher's probabilities were given."""
    w, temperature, path = 0.7, 3.0, taught / "wide" / "network.nnp"
    keys = {"distillation_weight": w, "distillation_temperature": temperature, "lambda": 0}
    task = Task(experiment(taught, quantizers="minmax:2,4", teacher=str(path), **keys))
    batch = task.data.at_epoch(0).batch(np.arange(16))
    scores = task.objective.scores
    scores.need_grad = True
    loss_of(task, batch)
    task.loss.backward()
    student, goal = scores.d.astype(np.float64), logits_of(path, batch["x"])
    labels = np.eye(CLASSES)[batch["y"].ravel().astype(int)]
    own, soft, wanted = (
        np.exp(log_softmax(z)) for z in (student, student / temperature, goal / temperature)
    )
    expected = ((1 - w) * (own - labels) + w * temperature * (soft - wanted)) / 16
    np.testing.assert_allclose(scores.g, expected, atol=1e-5)


@pytest.mark.parametrize("name", ["wide/network.nnp", "float/checkpoint"])
def test_updates_on_onednn_and_by_nnabla(taught, name):
    """One update with the same loss, and the same gradients of the weights but for rounding."""
    found = []
    for layers in ("auto", "nnabla"):
        with dqa.backend(layers=layers):
            task = Task(experiment(taught, quantizers="minmax:2,4", teacher=str(taught / name)))
            batch = task.data.at_epoch(0).batch(np.arange(16))
            expected, shared = loss_of(task, batch), nn.NdArray((2,))
            shared.zero()
            loss = Updater(task)(batch, 0.05, 0, shared)
        assert loss == pytest.approx(expected, rel=1e-4)
        found.append({n: v.g.copy() for n, v in task.solver.get_parameters().items()})
    for key, gradient in found[1].items():
        close = dict(rtol=1e-2, atol=1e-4 * max(1e-3, float(np.abs(gradient).max())))
        if not key.endswith("conv/b"):
            np.testing.assert_allclose(found[0][key], gradient, err_msg=key, **close)


@pytest.mark.parametrize("name", ["wide/network.nnp", "float/checkpoint"])
def test_in_half_precision_a_teacher_computes_in_float32(taught, name):
    keys = {"quantizers": "minmax:2,4", "teacher": str(taught / name)}
    with nn.context_scope(HALF):
        task = Task(experiment(taught, **keys))
    halves = []

    def look(function):
        if function.info.type_name == "Convolution":
            halves.append(any(":half" in backend for backend in function.context.backend))

    task.loss.visit(look)
    assert sorted(halves) == [False] * (len(halves) // 2) + [True] * (len(halves) // 2)


@pytest.mark.parametrize("name", ["float/network.nnp", "float/checkpoint", "float.h5"])
def test_a_teacher_may_be_any_file_of_a_float_run(taught, name):
    keys = {"quantizers": "minmax:2,4", "teacher": str(taught / name)}
    task = Task(experiment(taught, **keys))
    batch = task.data.batch(np.arange(16))
    expected = Task(experiment(taught, **{**keys, "teacher": str(taught / "float/network.nnp")}))
    assert loss_of(task, batch) == pytest.approx(loss_of(expected, batch), rel=1e-5)
    assert task.teacher["file"].endswith(name)
    assert any("teacher" in m and "0.5 of the loss" in m for m in task.messages)


def test_a_teacher_of_another_width_by_its_checkpoint(taught):
    task = Task(experiment(taught, quantizers="minmax:2", teacher=str(taught / "wide/checkpoint")))
    batch = task.data.batch(np.arange(16))
    file = str(taught / "wide/network.nnp")
    expected = Task(experiment(taught, quantizers="minmax:2", teacher=file))
    assert loss_of(task, batch) == pytest.approx(loss_of(expected, batch), rel=1e-5)


def test_a_checkpoint_whose_channels_are_last(taught, tmp_path):
    """As a GPU trains it, which this machine may not have."""
    found = read_checkpoint(taught / "float" / "checkpoint")
    turned = {n: a.transpose(0, 2, 3, 1) if a.ndim == 4 else a for n, a in found.arrays.items()}
    found.notes["recipe"]["model"]["channel_last"] = True
    write_checkpoint(tmp_path / "last", turned, S.Sgd(), found.notes)
    tasks = [
        Task(experiment(taught, quantizers="minmax:2", teacher=str(path)))
        for path in (taught / "float" / "checkpoint", tmp_path / "last")
    ]
    batch = tasks[0].data.batch(np.arange(16))
    assert loss_of(tasks[0], batch) == loss_of(tasks[1], batch)
    assert tasks[0].teacher["sum"] == tasks[1].teacher["sum"]


def test_the_teacher_stays_as_it_is_and_outside(taught, tmp_path):
    """It gets no gradient, its parameters are in no file, and it changes no first weight."""
    keys = {"quantizers": "minmax:2,4", "teacher": str(taught / "wide/network.nnp")}
    task = Task(experiment(taught, **keys))
    plain = Task(experiment(taught, quantizers="minmax:2,4"))
    for name, v in plain.parameters().items():
        np.testing.assert_array_equal(task.parameters()[name].d, v.d, err_msg=name)
    assert task.parameters().keys() == plain.parameters().keys()
    assert task.solver.get_parameters().keys() == plain.solver.get_parameters().keys()
    run(experiment(taught, **keys), tmp_path / "a")
    run(experiment(taught, quantizers="minmax:2,4"), tmp_path / "b")
    files = [parameters_of(tmp_path / name / "deployed.nnp") for name in "ab"]
    assert files[0].keys() == files[1].keys()
    assert any((files[0][name] != files[1][name]).any() for name in files[0])
    start = json.loads((tmp_path / "a" / "run.json").read_text())["starts"][0]
    assert start["teacher"]["file"] == keys["teacher"]
    assert result_of(tmp_path / "a")["recipe"]["teacher"] == keys["teacher"]


@pytest.mark.parametrize("name", ["float/network.nnp", "float/checkpoint", "float.h5"])
def test_nothing_of_the_teacher_gets_a_gradient(taught, name):
    task = Task(experiment(taught, quantizers="minmax:2,4", teacher=str(taught / name)))
    leaves = LiveGraph.of({"loss": task.loss}).leaves
    learned = {v.data for v in leaves.values() if v.need_grad}
    assert learned == {v.data for v in task.solver.get_parameters().values()}


@pytest.mark.parametrize("name", ["float/network.nnp", "float/checkpoint"])
def test_resumes_bit_for_bit(taught, tmp_path, name):
    made = experiment(taught, quantizers="minmax:2,4", teacher=str(taught / name))
    run(made, tmp_path / "a")
    interrupted(4, made, tmp_path / "b")
    run(made, tmp_path / "b", resume=True)
    files = [read_checkpoint(tmp_path / folder / "checkpoint").arrays for folder in "ab"]
    assert_same_parameters(*files)
    assert result_of(tmp_path / "a") == result_of(tmp_path / "b")


def test_another_teacher_of_the_same_name_is_noticed(taught, tmp_path):
    made = experiment(taught, quantizers="minmax:2,4", teacher=str(taught / "float/network.nnp"))
    interrupted(4, made, tmp_path / "a")
    other = experiment(taught, quantizers="minmax:2,4", teacher=str(taught / "wide/network.nnp"))
    with pytest.raises(CheckpointError) as error:
        run(other, tmp_path / "a", resume=True)
    assert "teacher" in one_line(error)


def small(folder, classes):
    path = folder / "other.nnp"
    return write_plain(path, lambda x: PF.affine(x, classes, name="b"), {"x": (8, 3, 32, 32)})


REFUSED = {
    "float": "is a folder; name a file in it, of a run network.nnp",
    "nothing.nnp": "there is no such file",
    "low/deployed.nnp": "is deployed; a teacher is a float network",
    "packed.nnp": "is packed; a teacher is a float network",
    "nan.npz": "parameter stem/conv/W has NaN or infinity in it",
    "foreign.npz": "is the checkpoint of a training without a recipe",
    "low/checkpoint": "has quantized layers; a teacher is a float network",
    "images.npz": "not a checkpoint",
    "other.nnp": f"its output has shape (16, {CLASSES + 1}), the model's output has (16, 3)",
    "classes/checkpoint": f"shape (16, {CLASSES + 2}), the model's output has (16, 3)",
    "wide.h5": "is no resnet8_32 of 3 classes and width 0.25: for parameter",
    "empty.h5": "holds no parameters, or is damaged",
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_teacher(taught, tmp_path, name):
    path = taught / name
    if name == "other.nnp":
        path = small(tmp_path, CLASSES + 1)
    elif name == "classes/checkpoint":
        run(experiment(taught, model={"classes": CLASSES + 2}), tmp_path / "classes")
        path = tmp_path / name
    elif name == "packed.nnp":
        archive, path = Archive.read(taught / "low" / "deployed.nnp"), tmp_path / name
        archive.metadata["kind"] = PACKED
        archive.write(path)
    elif name in ("nan.npz", "foreign.npz"):
        found, path = read_checkpoint(taught / "float" / "checkpoint"), tmp_path / name
        if name == "nan.npz":
            found.arrays["stem/conv/W"][0, 0] = np.nan
        else:
            del found.notes["recipe"]
        write_checkpoint(path, found.arrays, S.Sgd(), found.notes)
    elif name == "empty.h5":
        path = tmp_path / name
        path.write_bytes(b"\x89HDF")
    elif name == "wide.h5":
        path = tmp_path / name
        with nn.parameter_scope("", {}):
            for key, array in read_checkpoint(taught / "wide" / "checkpoint").arrays.items():
                nn.parameter.set_parameter(key, nn.Variable.from_numpy_array(array))
            nn.save_parameters(str(path))
    with pytest.raises((RecipeError, NNPError, CheckpointError)) as error:
        run(experiment(taught, quantizers="minmax:2", teacher=str(path)), tmp_path / "run")
    assert REFUSED[name] in one_line(error)
    assert str(path) in one_line(error)
    assert not (tmp_path / "run").exists()


def test_keys_that_do_not_go_together(taught):
    with pytest.raises(RecipeError, match="'distillation_weight' is for a teacher beside labels"):
        experiment(taught, loss="distillation", teacher="t.nnp", distillation_weight=0.5)
    with pytest.raises(RecipeError, match="'distillation_weight' must be a number from 0 to 1"):
        experiment(taught, teacher="t.nnp", distillation_weight=1.5)
    assert experiment(taught, teacher="t.nnp").taught == DISTILLATION_WEIGHT
    assert experiment(taught).taught == 0


def teach(folder, name="net.nnp", **options):
    """Train a console's NNP towards a float file of its folder."""
    source, made = make(folder, teacher=str(folder / name), epochs=1, **options)
    write_console(folder / "other.nnp", seed=5)
    result = train(source, made, folder / "out.nnp")
    return parameters_of(result.path), result


@pytest.mark.parametrize("inner", ["h", "y", "x0"])
def test_whatever_variables_inside_are_called(taught, tmp_path, inner):
    """A model's own output has no name that a file could use for something else."""
    nn.clear_parameters()
    x = nn.Variable((8, 3, 32, 32))
    h = PF.affine(x, CLASSES, name="b", rng=np.random.RandomState(0))
    scores = F.mul_scalar(h, 3.0)
    network = {"name": "n", "batch_size": 8, "outputs": {"scores": scores}}
    executor = {"name": "e", "network": "n", "data": ["x"], "output": ["scores"]}
    path = str(tmp_path / "t.nnp")
    named = {**network, "names": {"x": x, inner: h}}
    save(path, {"networks": [named], "executors": [executor]}, include_params=True)
    task = Task(experiment(taught, teacher=path, distillation_weight=1, **{"lambda": 0}))
    batch = task.data.batch(np.arange(16))
    loss = loss_of(task, batch)
    own, goal = (
        log_softmax(z / 2)
        for z in (task.objective.scores.d.astype(np.float64), logits_of(path, batch["x"]))
    )
    assert loss == pytest.approx(4 * (np.exp(goal) * (goal - own)).sum(axis=1).mean(), rel=1e-4)


@pytest.mark.parametrize("loss", [None, "softmax_cross_entropy"])
def test_an_nnp_learns_from_labels_and_teacher(tmp_path, loss):
    """With a weight of 0 it learns from labels alone, with 1 from the teacher alone."""
    source, made = make(tmp_path, epochs=1, loss=loss)
    plain = parameters_of(train(source, made, tmp_path / "plain.nnp").path)
    none, _ = teach(tmp_path, "other.nnp", loss=loss, distillation_weight=0)
    assert_same_parameters(plain, none)
    half, result = teach(tmp_path, "other.nnp", loss=loss)
    assert any((half[name] != plain[name]).any() for name in plain)
    assert result.score is not None
    alone, _ = teach(tmp_path, "other.nnp", loss=loss, distillation_weight=1)
    labelless, _ = teach(tmp_path, "other.nnp", loss="distillation")
    for name in alone:
        np.testing.assert_allclose(alone[name], labelless[name], atol=1e-3, err_msg=name)


def test_logits_are_compared_as_the_loss_means_them(tmp_path):
    """Classifiers without a softmax of their own: by their probabilities, not by their numbers."""
    path = write_plain(tmp_path / "n.nnp", lambda x: F.mul_scalar(classifier(x), 2.0))
    write_plain(tmp_path / "up.nnp", lambda x: F.add_scalar(F.mul_scalar(classifier(x), 2.0), 3.0))
    write_samples(tmp_path / "train.npz", 48)
    keys = dict(loss="softmax_cross_entropy", distillation_weight=1, batch_size=8, strength=0)
    losses = []
    for name in ("n.nnp", "up.nnp"):
        options = {**keys, "network": str(convert(path)), "teacher": str(tmp_path / name)}
        task = Task(Recipe(str(tmp_path / "train.npz"), **options))
        losses.append(loss_of(task, task.data.batch(np.arange(8))))
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    assert losses[0] > 1e-4


def test_parameters_alone_are_no_teacher_of_an_nnp(taught, tmp_path):
    source, made = make(tmp_path, teacher=str(taught / "float.h5"))
    with pytest.raises(RecipeError, match="holds parameters alone; for an NNP name an NNP"):
        train(source, made, tmp_path / "out.nnp")


def test_a_recipe_file_names_its_teacher_beside_it(taught):
    keys = recipe(taught, quantizers="minmax:2", teacher="float/network.nnp")
    (taught / "r.yaml").write_text(json.dumps(keys))
    made = Recipe.from_yaml(taught / "r.yaml")
    assert made.teacher == str(taught / "float/network.nnp")
