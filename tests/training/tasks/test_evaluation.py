"""Scores against numpy, over all samples, without touching anything."""

from __future__ import annotations

import subprocess
import sys
import textwrap

import nnabla as nn
import numpy as np
import pytest

from nnabla_dqa.data import ArrayData, DataError, iterate
from nnabla_dqa.nnp.deploy import deploy_file
from nnabla_dqa.nnp.file import NetworkFile
from nnabla_dqa.nnp.live import Program
from nnabla_dqa.recipes.recipe import DataRecipe, RecipeError
from nnabla_dqa.training.run import train
from nnabla_dqa.training.tasks.evaluation import evaluate, score_sums
from nnabla_dqa.training.tasks.file_scores import evaluate_file
from nnabla_dqa.training.tasks.inputs import fill
from nnabla_dqa.training.tasks.objective import make_objective
from nnabla_dqa.training.tasks.plan import resolve
from nnabla_dqa.training.tasks.teacher import FileTeacher
from tests.training.files import changed, make, one_line, samples

pytestmark = pytest.mark.filterwarnings("ignore::nnabla_dqa.layers.tensors.AttentionWarning")


def numpy_score(head, output, target):
    if head == "softmax":
        return np.mean(output.argmax(axis=1) == target.ravel())
    if head == "binary":
        return np.mean((output.ravel() > 0.5) == (target.ravel() == 1))
    return np.mean((output.astype(np.float64) - target) ** 2)


def hard_outputs(program, x):
    """What the layers compute with their lowest bit width, from the arrays alone."""
    values = {name: v.d.astype(np.float64) for name, v in program.parameters().items()}
    lowest = {m: mixture.quantizers[0] for m, mixture in program.file.mixtures.items()}
    for name, q in lowest.items():
        values[f"{name}/W"] = q.quantize(values[f"{name}/W"].astype(np.float32)).astype(np.float64)
    padded = np.pad(x.astype(np.float64)[:, 0], ((0, 0), (1, 1), (1, 1)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(1, 2))
    h = np.einsum("bijkl,okl->boij", windows, values["Convolution/conv/W"][:, 0])
    h += values["Convolution/conv/b"].reshape(1, -1, 1, 1)
    bn = {k: values[f"BatchNormalization/bn/{k}"] for k in ("beta", "gamma", "mean", "var")}
    h = (h - bn["mean"]) / np.sqrt(bn["var"] + 1e-4) * bn["gamma"] + bn["beta"]
    h = np.maximum(h, 0).reshape(len(x), -1)
    return h @ values["Affine/affine/W"] + values["Affine/affine/b"]


def task_of(folder, head, **options):
    path, recipe = make(folder, head=head, **options)
    program = Program(NetworkFile.read(path))
    x, y = samples(50, head, seed=3)
    data = ArrayData({"x": x, "y": y})
    plan = resolve(program.file, recipe)
    return make_objective(program, plan, recipe, data.shapes).hard, program, data


@pytest.mark.slow
@pytest.mark.parametrize("head", ["softmax", "binary", "regression"])
@pytest.mark.parametrize("batch_size", [7, 10, 50, 64])
def test_the_score_of_all_samples(head, batch_size, tmp_path):
    """Also where the last mini-batch is short, or the only one."""
    task, program, data = task_of(tmp_path, head, batch_size=batch_size)
    expected_metric = "mean squared error" if head == "regression" else "accuracy"
    assert task.metric == expected_metric
    rng = np.random.RandomState(0)
    program.variable("BatchNormalization/bn/mean").d = 0.3 * rng.randn(1, 4, 1, 1)
    program.variable("BatchNormalization/bn/var").d = 0.5 + rng.rand(1, 4, 1, 1)
    batch = data.batch(np.arange(50))
    output = hard_outputs(program, batch["x"])
    if head == "binary":
        output = 1 / (1 + np.exp(-output))
    expected = numpy_score(head, output, batch["y"])
    assert evaluate([task], data)[0].value == pytest.approx(expected, rel=1e-5)


def test_evaluation_changes_nothing(tmp_path):
    task, program, data = task_of(tmp_path, "softmax", batch_size=16)
    before = {k: (v.d.copy(), v.need_grad) for k, v in program.parameters().items()}
    root = list(nn.get_parameters(grad_only=False))
    first = evaluate([task], data)
    assert evaluate([task], data) == first
    after = program.parameters()
    assert list(after) == list(before)
    for name, (value, need_grad) in before.items():
        np.testing.assert_array_equal(after[name].d, value)
        assert after[name].need_grad == need_grad
    assert list(nn.get_parameters(grad_only=False)) == root == []


def test_no_target_no_score(tmp_path):
    path, recipe = make(tmp_path, loss="distillation", batch_size=10)
    program = Program(NetworkFile.read(path))
    data = ArrayData({"x": samples(20)[0]})
    teacher = Program(NetworkFile.read(path), quantized=False)
    plan = resolve(program.file, recipe)
    task = make_objective(program, plan, recipe, data.shapes, FileTeacher(teacher)).hard
    assert (task.metric, task.target) == ("", "")


def score_sum(*arguments):
    return score_sums(*arguments)[0]


def test_score_sums_counts_only_the_rows_of_the_target():
    rng = np.random.RandomState(0)
    output, labels = rng.randn(8, 5), rng.randint(0, 5, (6, 1))
    expected = np.sum(output[:6].argmax(axis=1) == labels[:, 0])
    assert score_sum("accuracy", output, labels) == expected
    assert score_sum("accuracy", output.reshape(8, 5, 1, 1), labels) == expected
    one, target = rng.rand(8, 1), rng.randint(0, 2, (6, 1))
    assert score_sum("accuracy", one, target) == np.sum((one[:6] > 0.5) == target)
    goal = rng.randn(6, 5)
    expected = np.sum(np.mean((output[:6] - goal) ** 2, axis=1))
    assert score_sum("mean squared error", output, goal) == pytest.approx(expected)


def test_the_score_does_not_depend_on_the_order_of_batches(tmp_path):
    task, _, data = task_of(tmp_path, "softmax", batch_size=16)
    right = 0.0
    for batch in iterate(data, 16, 5, 2, drop_last=False):
        fill(task.feeds, batch)
        task.output.forward()
        right += score_sums(task.metric, task.output.d, batch["y"])[0]
    assert evaluate([task], data)[0].value == right / 50


def test_the_written_file_scores_the_same_in_plain_nnabla(tmp_path):
    source, recipe = make(tmp_path, epochs=2)
    result = train(source, recipe, tmp_path / "out.nnp")
    script = """
        import sys
        sys.modules["nnabla_dqa"] = None
        import numpy as np
        import nnabla as nn
        data = np.load(sys.argv[2])
        graph = nn.graph_def.load(sys.argv[1], batch_size=100)
        y = graph.networks["MainRuntime"](nn.Variable.from_numpy_array(data["x"]))
        y.forward()
        print(np.mean(y.d.argmax(axis=1) == data["y"]))
    """
    command = [sys.executable, "-c", textwrap.dedent(script), str(result.path)]
    command.append(str(tmp_path / "test.npz"))
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout.splitlines()[-1]) == pytest.approx(result.score, abs=1e-9)


def bad_validation(kind):
    x, y = samples(30)
    return {
        "missing": {"x": x},
        "shape": {"x": x[:, :, :3], "y": y},
        "target": {"x": x, "y": np.eye(3)[y]},
    }[kind]


@pytest.mark.parametrize("kind", ["missing", "shape", "target"])
def test_validation_data_that_do_not_fit_are_refused_before_the_first_update(kind, tmp_path):
    source, recipe = make(tmp_path)
    np.savez(tmp_path / "bad.npz", **bad_validation(kind))
    data = {**recipe.to_json()["data"], "validation": str(tmp_path / "bad.npz")}
    with pytest.raises(DataError) as error:
        train(
            source,
            changed(recipe, data=data),
            tmp_path / "out.nnp",
            on_step=lambda *_: pytest.fail("trained"),
        )
    one_line(error)


def test_validation_labels_that_are_no_class_are_refused(tmp_path):
    source, recipe = make(tmp_path, epochs=1)
    x, y = samples(30)
    np.savez(tmp_path / "bad.npz", x=x, y=y + 1)
    data = {**recipe.to_json()["data"], "validation": str(tmp_path / "bad.npz")}
    with pytest.raises(DataError, match="has the label 3; the network knows 3"):
        train(source, changed(recipe, data=data), tmp_path / "out.nnp")


@pytest.mark.slow
@pytest.mark.parametrize("head", ["softmax", "binary", "regression"])
def test_a_file_of_any_kind_scores_what_training_said(head, tmp_path):
    source, recipe = make(tmp_path, head=head)
    result = train(source, recipe, tmp_path / "out.nnp")
    data = DataRecipe(str(tmp_path / "test.npz"))
    found = evaluate_file(result.path, data)
    assert found.metric == result.epochs[-1].metric
    assert (found.value, found.samples) == (pytest.approx(result.score, rel=1e-6), 100)
    assert evaluate_file(result.path, data, batch_size=7).value == pytest.approx(found.value)
    deploy_file(result.path, tmp_path / "deployed.nnp")
    deployed = evaluate_file(tmp_path / "deployed.nnp", data)
    assert deployed.value == pytest.approx(result.score, rel=1e-4)
    x, y = samples(100, head, seed=1)
    program = Program(NetworkFile.read(tmp_path / "net.nnp"))
    output = hard_outputs(program, x)
    output = 1 / (1 + np.exp(-output)) if head == "binary" else output
    expected = numpy_score(head, output, y)
    assert evaluate_file(tmp_path / "net.nnp", data).value == pytest.approx(expected, rel=1e-5)


def test_files_and_data_that_do_not_go_together(tmp_path):
    path, recipe = make(tmp_path)
    x, y = samples(30)
    np.savez(tmp_path / "few.npz", x=x, y=y)
    assert evaluate_file(path, DataRecipe(str(tmp_path / "few.npz"), limit=20)).samples == 20
    cases = {
        "no column to compare": dict(x=x),
        "takes": dict(x=x[:, :, :3], y=y),
        "no column 'x'": dict(image=x, y=y),
        "has the label 3": dict(x=x, y=y + 1),
    }
    for words, arrays in cases.items():
        np.savez(tmp_path / "wrong.npz", **arrays)
        with pytest.raises(DataError, match=words) as error:
            evaluate_file(path, DataRecipe(str(tmp_path / "wrong.npz")))
        one_line(error)
    with pytest.raises(RecipeError, match="'Sotfmax'"):
        evaluate_file(path, DataRecipe(recipe.data.train), output="Sotfmax")


def test_statistics_computed_at_the_end_count_in_the_score(tmp_path):
    """The score that training reports is that of the file it writes."""
    options = dict(epochs=1, data={"limit": 48}, update_normalization=48)
    source, recipe = make(tmp_path, head="regression", **options)
    result = train(source, recipe, tmp_path / "out.nnp")
    written = evaluate_file(result.path, DataRecipe(str(tmp_path / "test.npz")))
    assert result.score == pytest.approx(written.value, rel=1e-5)
