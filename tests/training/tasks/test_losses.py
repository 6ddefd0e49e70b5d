"""Losses against float64 numpy, and what is found in a network's definition."""

from __future__ import annotations

import dataclasses

import nnabla as nn
import nnabla.functions as F
import nnabla.parametric_functions as PF
import numpy as np
import pytest

from nnabla_dqa.nnp.file import NetworkFile
from nnabla_dqa.nnp.inspect import own_losses, producer
from nnabla_dqa.nnp.live import Program
from nnabla_dqa.nnp_format.members import NNPError
from nnabla_dqa.recipes.recipe import Recipe, RecipeError
from nnabla_dqa.training.run import train
from nnabla_dqa.training.tasks.losses import (
    Logits,
    class_counts,
    distillation,
    logits_of,
    named_loss,
)
from tests.training.files import (
    SAMPLE,
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

ACTIVATIONS = {
    "": lambda h: h,
    "softmax": F.softmax,
    "log_softmax": F.log_softmax,
    "sigmoid": F.sigmoid,
}
ROWS = 8


def softmax(z):
    e = np.exp(z - z.max(axis=1, keepdims=True))
    return e / e.sum(axis=1, keepdims=True)


def sigmoid(z):
    return 1 / (1 + np.exp(-z))


def network(folder, activation, scale=1.0):
    """The live graph of a saved net with this activation at its end: built, definition, scores."""

    def build(x):
        h = F.mul_scalar(PF.affine(x, 5, name="fc"), scale)
        return ACTIVATIONS[activation](h)

    path = write_plain(folder / "net.nnp", build, outputs=["out"])
    file = NetworkFile.read(path)
    built = Program(file).build("net", ROWS)
    x = np.random.RandomState(0).randn(ROWS, *SAMPLE)
    built.inputs["x"].d = x
    values = {k: v.array.astype(np.float64) for k, v in file.archive.parameters.items()}
    scores = x.reshape(ROWS, -1) @ values["fc/affine/W"] + values["fc/affine/b"]
    return built, file.network("net"), scores * scale


def value_of(loss, target, values):
    target.d = values
    loss.forward()
    assert loss.shape == ()
    return float(loss.d)


@pytest.mark.parametrize("activation", ["", "softmax", "log_softmax"])
@pytest.mark.parametrize("scale", [1.0, 300.0])
def test_softmax_cross_entropy_is_taken_on_the_logits(activation, scale, tmp_path):
    built, proto, scores = network(tmp_path, activation, scale)
    logits = logits_of(built, proto, "out")
    assert logits.activation == ("softmax" if activation else "")
    loss, target = named_loss("softmax_cross_entropy", logits, built.variables["out"])
    assert target.shape == (ROWS, 1)
    labels = np.arange(ROWS) % 5
    shifted = scores - scores.max(axis=1, keepdims=True)
    log = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    expected = -log[np.arange(ROWS), labels].mean()
    # At scale 300 the probabilities themselves are 0 in float32.
    assert value_of(loss, target, labels.reshape(-1, 1)) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("activation", ["", "sigmoid"])
@pytest.mark.parametrize("scale", [1.0, 100.0])
def test_sigmoid_cross_entropy_is_taken_on_the_logits(activation, scale, tmp_path):
    built, proto, z = network(tmp_path, activation, scale)
    logits = logits_of(built, proto, "out")
    assert logits.activation == activation
    loss, target = named_loss("sigmoid_cross_entropy", logits, built.variables["out"])
    t = np.random.RandomState(1).randint(0, 2, z.shape)
    expected = np.mean(np.maximum(z, 0) - z * t + np.log1p(np.exp(-np.abs(z))))
    assert value_of(loss, target, t) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("activation", ["", "sigmoid", "softmax"])
@pytest.mark.parametrize("kind", ["squared_error", "huber"])
def test_losses_on_the_output_itself(kind, activation, tmp_path):
    built, proto, z = network(tmp_path, activation, 3.0)
    y = {"": z, "sigmoid": sigmoid(z), "softmax": softmax(z)}[activation]
    logits = logits_of(built, proto, "out")
    loss, target = named_loss(kind, logits, built.variables["out"])
    t = 3 * np.random.RandomState(1).randn(*y.shape)
    d = np.abs(y - t)
    # NNabla's Huber loss is twice the textbook's.
    huber = np.where(d < 1, d**2, 2 * d - 1)
    expected = np.mean(huber if kind == "huber" else d**2)
    assert value_of(loss, target, t) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(("given", "axis"), [(1, 1), (2, 2), (-1, 2)])
@pytest.mark.parametrize("end", [F.softmax, F.log_softmax])
def test_classes_on_another_axis(end, given, axis, tmp_path):
    """Of an output (B, 3, 4): logits know the axis, and probabilities over it are compared."""

    def build(x):
        return end(F.reshape(PF.affine(x, 12, name="a"), (-1, 3, 4), inplace=False), axis=given)

    file = NetworkFile.read(write_plain(tmp_path / "net.nnp", build))
    proto = file.network("net")
    logits = logits_of(Program(file).build("net", ROWS), proto, "out")
    assert logits[1:] == ("softmax", axis)
    z, goal = np.random.RandomState(0).randn(2, ROWS, 3, 4)
    value, _ = distilled("softmax", z, goal, axis=axis)
    own, wanted = (np.moveaxis(a, axis, 1) for a in (z, goal))
    assert value == pytest.approx(distilled("softmax", own, wanted)[0], rel=1e-5)


def distilled(activation, z, goal, temperature=2.0, axis=1):
    student = nn.Variable.from_numpy_array(z, need_grad=True)
    teacher = nn.Variable.from_numpy_array(goal, need_grad=True)
    ends = (Logits(v, activation, axis) for v in (student, teacher))
    loss = distillation(*ends, temperature)
    loss.forward()
    student.g = teacher.g = 0
    loss.backward()
    assert loss.shape == ()
    assert not teacher.g.any()
    return float(loss.d), student.g.copy()


@pytest.mark.parametrize("activation", ["", "softmax", "sigmoid"])
def test_distillation_is_least_at_the_teacher(activation):
    rng = np.random.RandomState(0)
    goal = rng.randn(ROWS, 5)
    least, gradient = distilled(activation, goal, goal)
    assert least == pytest.approx(0, abs=1e-6)
    np.testing.assert_allclose(gradient, 0, atol=1e-7)
    for _ in range(10):
        other = goal + 0.5 * rng.randn(*goal.shape)
        value, gradient = distilled(activation, other, goal)
        assert value > least
        # Against the gradient lies the teacher.
        assert np.sum(gradient * (other - goal)) > 0


@pytest.mark.parametrize("temperature", [1.0, 2.0, 5.0])
def test_distillation_values(temperature):
    rng = np.random.RandomState(0)
    z, goal = 2 * rng.randn(ROWS, 5), 2 * rng.randn(ROWS, 5)
    p, q = softmax(goal / temperature), softmax(z / temperature)
    value, gradient = distilled("softmax", z, goal, temperature)
    expected = temperature**2 * np.mean(np.sum(p * np.log(p / q), axis=1))
    assert value == pytest.approx(expected, rel=1e-5)
    np.testing.assert_allclose(gradient, temperature * (q - p) / ROWS, atol=1e-6)
    p, q = sigmoid(goal), sigmoid(z)
    value, _ = distilled("sigmoid", z, goal, temperature)
    expected = np.mean(p * np.log(p / q) + (1 - p) * np.log((1 - p) / (1 - q)))
    assert value == pytest.approx(expected, rel=1e-5)
    value, _ = distilled("", z, goal, temperature)
    assert value == pytest.approx(np.mean((z - goal) ** 2), rel=1e-5)


def test_what_a_definition_tells(tmp_path):
    file = NetworkFile.read(write_console(tmp_path / "net.nnp"))
    main, runtime = file.network("Main"), file.network("MainRuntime")
    assert own_losses(main) == ["CategoricalCrossEntropy"]
    assert own_losses(runtime) == []
    assert producer(main, "Softmax").type == "Softmax"
    assert producer(main, "Input") is None
    built = Program(file).build("Main", 4)
    assert class_counts(built, main) == {"CategoricalCrossEntropy_T": 3}
    assert class_counts(Program(file).build("MainRuntime", 4), runtime) == {}


def test_classes_of_a_loss_on_every_pixel_and_two_losses(tmp_path):
    def build(x, t, u):
        h = PF.convolution(x, 6, (1, 1), name="c")
        return F.softmax_cross_entropy(h, t, axis=1), F.huber_loss(PF.affine(h, 2), u)

    inputs = {"x": (8, *SAMPLE), "t": (8, 1, 4, 4), "u": (8, 2)}
    file = NetworkFile.read(write_plain(tmp_path / "n.nnp", build, inputs, ["a", "b"]))
    proto = file.network("net")
    assert own_losses(proto) == ["a", "b"]
    assert class_counts(Program(file).build("net", 4), proto) == {"t": 6}


REDUCED = {
    "half": (lambda loss: F.mul_scalar(loss, 0.5), ["out"]),
    "mean": (F.mean, ["out"]),
    "total": (lambda loss: F.mean(F.add2(loss, loss)), ["out"]),
    "weight": (F.exp, []),
}


@pytest.mark.parametrize("kind", REDUCED)
def test_sums_and_multiples_of_losses_are_losses(kind, tmp_path):
    reduce, expected = REDUCED[kind]

    def build(x, u):
        return reduce(F.squared_error(PF.affine(x, 2), u))

    path = write_plain(tmp_path / "n.nnp", build, {"x": (8, *SAMPLE), "u": (8, 2)})
    assert own_losses(NetworkFile.read(path).network("net")) == expected


def test_sigmoid_cross_entropy_with_targets_between_0_and_1(tmp_path):
    built, proto, z = network(tmp_path, "sigmoid")
    loss, target = named_loss(
        "sigmoid_cross_entropy", logits_of(built, proto, "out"), built.variables["out"]
    )
    t = np.random.RandomState(1).rand(*z.shape)
    expected = np.mean(np.maximum(z, 0) - z * t + np.log1p(np.exp(-np.abs(z))))
    assert value_of(loss, target, t) == pytest.approx(expected, rel=1e-5)


def distill(folder, rules="minmax:2,4,8", teacher=None, **options):
    """Parameters after a distillation without labels, and what training said."""
    source, recipe = make(folder, rules, loss="distillation", epochs=2, **options)
    for name, count in (("train", 240), ("test", 100)):
        write_samples(folder / f"{name}.npz", count, names=("x", ""))
    if teacher is not None:
        recipe = dataclasses.replace(recipe, teacher=str(teacher))
    result = train(source, recipe, folder / "out.nnp")
    return parameters_of(result.path), result


@pytest.mark.slow
def test_distillation_needs_no_labels_and_teaches(tmp_path):
    own, result = distill(tmp_path)
    assert result.score is None
    assert result.epochs[-1].loss < result.epochs[0].loss
    assert not [m for m in result.messages if "fixed" in m]
    named, _ = distill(tmp_path, teacher=tmp_path / "net.nnp")
    assert_same_parameters(own, named)
    other, _ = distill(tmp_path, teacher=write_console(tmp_path / "other.nnp", seed=5))
    assert (other["Affine/affine/W"] != own["Affine/affine/W"]).any()


def test_distillation_with_labels_tells_the_score(tmp_path):
    source, recipe = make(tmp_path, loss="distillation", epochs=1)
    result = train(source, recipe, tmp_path / "out.nnp")
    assert result.epochs[0].metric == "accuracy"
    assert 0 <= result.score <= 1


@pytest.mark.parametrize("rules", ["minmax:2,4,8", "bwn"])
def test_a_trained_file_is_no_teacher_of_itself(rules, tmp_path):
    source, recipe = make(tmp_path, rules, loss="distillation", epochs=1)
    first = train(source, recipe, tmp_path / "first.nnp").path
    with pytest.raises(NNPError) as error:
        train(first, recipe, tmp_path / "second.nnp")
    assert "teacher: ..." in one_line(error)
    recipe = dataclasses.replace(recipe, teacher=str(tmp_path / "net.nnp"))
    train(first, recipe, tmp_path / "second.nnp")


def teacher_of(folder, name="out", shape=SAMPLE):
    """A deeper net than the student, saved by itself."""

    def build(x):
        h = F.relu(PF.affine(x, 20, name="b1"))
        return F.softmax(PF.affine(F.relu(PF.affine(h, 20, name="b2")), 3, name="b3"))

    return write_plain(folder / "teacher.nnp", build, {"x": (8, *shape)}, [name])


def student_of(folder):
    path = write_plain(folder / "student.nnp", lambda x: F.softmax(classifier(x)))
    write_samples(folder / "train.npz", 48, names=("x", ""))
    return convert(path)


def test_a_teacher_of_another_build(tmp_path):
    """Inputs and outputs are called alike; what lies between is the teacher's own affair."""
    source, teacher = student_of(tmp_path), teacher_of(tmp_path)
    recipe = Recipe(
        str(tmp_path / "train.npz"), loss="distillation", teacher=str(teacher), batch_size=8
    )
    result = train(source, recipe, tmp_path / "out.nnp")
    assert result.epochs[-1].loss < result.epochs[0].loss


def test_the_only_output_of_a_teacher_may_have_another_name(tmp_path):
    source, teacher = student_of(tmp_path), teacher_of(tmp_path, name="answer")
    recipe = Recipe(
        str(tmp_path / "train.npz"), loss="distillation", teacher=str(teacher), batch_size=8
    )
    result = train(source, recipe, tmp_path / "out.nnp")
    assert result.epochs[-1].loss < result.epochs[0].loss


def test_a_teacher_with_other_inputs_is_refused(tmp_path):
    source, teacher = student_of(tmp_path), teacher_of(tmp_path, shape=(1, 5, 4))
    recipe = Recipe(
        str(tmp_path / "train.npz"), loss="distillation", teacher=str(teacher), batch_size=8
    )
    with pytest.raises((NNPError, RecipeError)) as error:
        train(source, recipe, tmp_path / "out.nnp")
    assert "takes x (1, 5, 4)" in one_line(error)
