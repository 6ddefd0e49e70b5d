"""What a recipe makes of a file: which network, which loss, which column, which metric."""

from __future__ import annotations

import nnabla as nn
import nnabla.functions as F
import nnabla.parametric_functions as PF
import numpy as np
import pytest

from nnabla_dqa.data import ArrayData, DataError
from nnabla_dqa.nnp.file import NetworkFile
from nnabla_dqa.nnp.live import Program
from nnabla_dqa.nnp_format.members import NNPError
from nnabla_dqa.recipes.recipe import Recipe, RecipeError
from nnabla_dqa.training.tasks.evaluation import evaluate
from nnabla_dqa.training.tasks.inputs import check_labels, fill
from nnabla_dqa.training.tasks.objective import make_objective
from nnabla_dqa.training.tasks.plan import resolve
from nnabla_dqa.training.tasks.teacher import FileTeacher
from tests.training.files import (
    SAMPLE,
    classifier,
    convert,
    one_line,
    samples,
    write_console,
    write_plain,
)

NAMED = {
    "softmax_cross_entropy": (3, lambda x: classifier(x)),
    "sigmoid_cross_entropy": (1, lambda x: F.mul_scalar(classifier(x, 1), 0.2)),
    "squared_error": (2, lambda x: classifier(x, 2)),
}


def columns(count=8, head="softmax", names=("x", "y")):
    return dict(zip(names, samples(count, head)))


def task_of(path, arrays, inputs=None, **options):
    data = {"train": "-", **({} if inputs is None else {"inputs": inputs})}
    recipe = Recipe.from_mapping({"data": data, "batch_size": 8, **options})
    program = Program(NetworkFile.read(path))
    plan = resolve(program.file, recipe)
    return make_objective(program, plan, recipe, ArrayData(arrays).shapes)


def plan_of(path, **options):
    return resolve(NetworkFile.read(path), Recipe.from_mapping({"data": "-", **options}))


def fed(task):
    """Column by column: the shape and the number of classes it is fed as."""
    return {feed.column: (feed.variable.shape, feed.classes) for feed in task.feeds}


def error_of(kind, *args, **options):
    with pytest.raises(kind) as error:
        task_of(*args, **options)
    return one_line(error)


@pytest.mark.parametrize("head", ["softmax", "binary", "regression"])
def test_the_files_own_loss_is_the_mean_of_its_loss_variable(head, tmp_path):
    path = convert(write_console(tmp_path / "net.nnp", head))
    arrays = columns(8, head)
    batch = ArrayData(arrays).batch(np.arange(8))
    task = task_of(path, arrays)
    assert plan_of(path)[:2] == ("Main", "file")
    fill(task.feeds, batch)
    task.loss.forward()

    graph = nn.graph_def.load(str(path), batch_size=8)
    network = graph.networks["Main"]
    x, t = (nn.Variable.from_numpy_array(batch[name]) for name in "xy")
    given = [x if name == "Input" else t for name in network.inputs]
    loss = network(*given)
    loss.forward()
    assert task.loss.shape == ()
    assert float(task.loss.d) == pytest.approx(loss.d.astype(np.float64).mean(), rel=1e-5)
    sizes = {"softmax": (1, 3), "binary": (1, 0), "regression": (2, 0)}
    assert fed(task) == {"x": ((8, *SAMPLE), 0), "y": ((8, sizes[head][0]), sizes[head][1])}


def test_columns_by_the_files_optimizer_and_executor(tmp_path):
    path = write_console(tmp_path / "net.nnp", x="image", y="kind")
    task = task_of(path, columns(names=("image", "kind")))
    assert fed(task) == {"image": ((8, *SAMPLE), 0), "kind": ((8, 1), 3)}
    assert [feed.column for feed in task.hard.feeds] == ["image"]
    assert (task.hard.target, task.hard.metric) == ("kind", "accuracy")
    task = task_of(path, columns(names=("image", "kind")), loss="softmax_cross_entropy")
    assert list(fed(task)) == ["image", "kind"]


def test_columns_by_the_recipe(tmp_path):
    path = write_console(tmp_path / "net.nnp")
    inputs = {"Input": "a", "CategoricalCrossEntropy_T": "b"}
    arrays = {**columns(names=("a", "b")), "x": np.zeros((8, 16)), "y": np.zeros(8)}
    task = task_of(path, arrays, inputs)
    assert fed(task) == {"a": ((8, *SAMPLE), 0), "b": ((8, 1), 3)}
    assert (task.hard.target, task.hard.feeds[0].column) == ("b", "a")


def test_columns_by_name_and_by_order(tmp_path):
    path = write_plain(tmp_path / "a.nnp", classifier, {"picture": (8, *SAMPLE)})
    task = task_of(path, columns(), loss="softmax_cross_entropy")
    assert fed(task) == {"x": ((8, *SAMPLE), 0), "y": ((8, 1), 3)}
    task = task_of(path, columns(names=("picture", "label")), loss="softmax_cross_entropy")
    assert fed(task) == {"picture": ((8, *SAMPLE), 0), "label": ((8, 1), 3)}


def test_the_target_of_a_loss_is_a_label_whatever_it_is_called(tmp_path):
    """A net whose output has the shape of its input: nothing but the loss tells which is which."""

    def build(x, t):
        return F.squared_error(PF.affine(x, 4), t)

    path = write_plain(tmp_path / "n.nnp", build, {"x": (8, 4), "t": (8, 4)})
    rng = np.random.RandomState(0)
    task = task_of(path, {"x": rng.randn(8, 4), "y": rng.randn(8, 4)})
    assert sorted(fed(task)) == ["x", "y"]


def test_missing_columns(tmp_path):
    path = write_console(tmp_path / "net.nnp")
    message = error_of(DataError, path, columns(names=("image", "y")))
    assert "'x'" in message
    assert "Input" in message
    assert "image, y" in message
    message = error_of(DataError, path, {"x": samples(8)[0]})
    assert "'y'" in message
    assert "CategoricalCrossEntropy_T" in message
    plain = write_plain(tmp_path / "p.nnp", classifier)
    message = error_of(DataError, plain, {"x": samples(8)[0]}, loss="softmax_cross_entropy")
    assert "'y'" in message


def test_what_the_recipe_says_of_inputs_must_be_there(tmp_path):
    path = write_console(tmp_path / "net.nnp")
    message = error_of(DataError, path, columns(), {"Input": "imgae"})
    assert "'imgae'" in message
    assert "x, y" in message
    with pytest.raises((RecipeError, DataError)) as error:
        task_of(path, columns(), {"Inptu": "x"})
    assert "Inptu" in one_line(error)


@pytest.mark.parametrize(
    ("given", "wanted", "fits"),
    [
        ((28, 28), (1, 28, 28), True),
        ((1, 28, 28), (28, 28), True),
        ((784,), (1, 28, 28), True),
        ((1, 28, 28), (784,), True),
        ((3, 8, 8), (192,), True),
        ((8, 8, 1), (1, 8, 8), True),
        ((28, 28), (1, 28, 27), False),
        ((8, 8, 3), (3, 8, 8), False),
        ((3, 8, 8), (8, 8, 3), False),
        ((14, 56), (28, 28), False),
        ((783,), (1, 28, 28), False),
    ],
)
def test_shapes_that_fit(given, wanted, fits, tmp_path):
    path = write_plain(tmp_path / "n.nnp", lambda x: PF.affine(x, 3), {"x": (8, *wanted)})
    arrays = {"x": np.random.RandomState(0).randn(8, *given), "y": np.zeros(8)}
    if not fits:
        message = error_of(DataError, path, arrays, loss="softmax_cross_entropy")
        assert str(given) in message
        assert str(wanted) in message
        return
    task = task_of(path, arrays, loss="softmax_cross_entropy")
    fill(task.feeds, ArrayData(arrays).batch(np.arange(8)))
    np.testing.assert_allclose(task.feeds[0].variable.d.ravel(), arrays["x"].ravel(), rtol=1e-6)


def test_targets_of_another_shape(tmp_path):
    path = write_console(tmp_path / "net.nnp")
    arrays = {"x": samples(8)[0], "y": np.eye(8, 3)}
    message = error_of(DataError, path, arrays)
    assert "(3,)" in message
    assert "(1,)" in message


@pytest.mark.parametrize("loss", ["file", "softmax_cross_entropy"])
@pytest.mark.parametrize("wrong", [3, -1, 0.5, 1e9])
def test_labels_that_are_no_class(loss, wrong, tmp_path):
    task = task_of(write_console(tmp_path / "net.nnp"), columns(), loss=loss)
    batch = ArrayData(columns()).batch(np.arange(8))
    batch["y"][5] = wrong
    with pytest.raises(DataError) as error:
        fill(task.feeds, batch)
    message = one_line(error)
    assert f"'y' has the label {wrong:g}" in message
    assert "from 0 to 2" in message
    check_labels("y", np.array([[0.0], [2.0]]), 3)


def test_files_without_a_loss_need_one_in_the_recipe(tmp_path):
    path = write_plain(tmp_path / "n.nnp", classifier)
    for loss in (None, "file"):
        message = error_of(RecipeError, path, columns(), loss=loss)
        assert "'loss'" in message
        assert "softmax_cross_entropy, sigmoid_cross_entropy, squared_error" in message
        assert str(path) in message


@pytest.mark.parametrize("loss", [None, "file", "softmax_cross_entropy"])
def test_a_network_that_is_not_there_lists_those_that_are(loss, tmp_path):
    path = write_console(tmp_path / "net.nnp")
    message = error_of((RecipeError, NNPError), path, columns(), loss=loss, train_network="Mian")
    assert "'Mian'" in message
    assert "Main, MainValidation, MainRuntime" in message


@pytest.mark.parametrize("loss", [None, "softmax_cross_entropy"])
def test_an_output_that_is_not_there_lists_those_that_are(loss, tmp_path):
    path = write_console(tmp_path / "net.nnp")
    message = error_of(RecipeError, path, columns(), loss=loss, output="Sotfmax")
    assert "'Sotfmax'" in message
    assert "Affine" in message.replace("Sotfmax", "")


def test_a_chosen_network_and_output(tmp_path):
    path = write_console(tmp_path / "net.nnp")
    assert plan_of(path, train_network="MainValidation").network == "MainValidation"
    options = dict(loss="softmax_cross_entropy", output="Affine")
    task = task_of(path, columns(), train_network="MainRuntime", **options)
    assert plan_of(path, train_network="MainRuntime", **options).network == "MainRuntime"
    assert task.hard.output.shape == (8, 3)
    batch = ArrayData(columns()).batch(np.arange(8))
    both = [task, task_of(path, columns(), loss="softmax_cross_entropy", output="Softmax")]
    for made in both:
        fill(made.feeds, batch)
        made.loss.forward()
    assert float(both[0].loss.d) == pytest.approx(float(both[1].loss.d), rel=1e-6)


@pytest.mark.parametrize("kind", NAMED)
def test_metrics_of_named_losses(kind, tmp_path):
    size, build = NAMED[kind]
    head = {3: "softmax", 1: "binary", 2: "regression"}[size]
    path = write_plain(tmp_path / "n.nnp", build)
    task = task_of(path, columns(8, head), loss=kind)
    assert task.hard.metric == ("mean squared error" if size == 2 else "accuracy")
    assert task.hard.target == "y"
    # The output is no probability: a logit says yes above 0.
    data = ArrayData(columns(64, head))
    batch = data.batch(np.arange(64))
    net = nn.graph_def.load(str(path), batch_size=64)
    out = net(nn.Variable.from_numpy_array(batch["x"]))
    out.forward()
    expected = {
        3: np.mean(out.d.argmax(axis=1) == batch["y"][:, 0]),
        1: np.mean((out.d > 0) == (batch["y"] > 0.5)),
        2: np.mean((out.d.astype(np.float64) - batch["y"]) ** 2),
    }[size]
    assert evaluate([task.hard], data)[0].value == pytest.approx(expected, rel=1e-5)


def test_no_metric_where_none_fits(tmp_path):
    def build(x):
        return PF.convolution(x, 3, (1, 1))

    path = write_plain(tmp_path / "n.nnp", build)
    arrays = {"x": samples(8)[0], "y": np.zeros((8, 1, 4, 4))}
    task = task_of(path, arrays, loss="softmax_cross_entropy")
    assert task.hard.metric == ""
    assert task.feeds[-1].classes == 3


def test_one_network_that_holds_its_loss_is_not_scored_by_its_loss(tmp_path):
    def build(x, y):
        return F.softmax_cross_entropy(classifier(x), y)

    path = write_plain(tmp_path / "n.nnp", build, {"x": (8, *SAMPLE), "y": (8, 1)}, executor=False)
    task = task_of(path, columns())
    assert plan_of(path).kind == "file"
    assert task.hard.metric in ("", "accuracy")


def test_distillation_compares_all_outputs_of_the_executor(tmp_path):
    def build(x):
        h = F.relu(PF.affine(x, 6, name="a"))
        return F.softmax(PF.affine(h, 3, name="b")), PF.affine(h, 2, name="c")

    path = write_plain(tmp_path / "n.nnp", build, outputs=["kind", "place"], all_outputs=True)
    program = Program(NetworkFile.read(path))
    teacher = Program(NetworkFile.read(path), quantized=False)
    teacher.variable("c/affine/b").d = 1.0
    recipe = Recipe("-", batch_size=8, loss="distillation", distillation_temperature=1.0)
    plan = resolve(program.file, recipe)
    task = make_objective(program, plan, recipe, {"x": SAMPLE}, FileTeacher(teacher))
    fill(task.feeds, ArrayData(columns()).batch(np.arange(8)))
    task.loss.forward()
    # The classes are the teacher's own, each place is 1 off.
    assert float(task.loss.d) == pytest.approx(1.0, rel=1e-5)
