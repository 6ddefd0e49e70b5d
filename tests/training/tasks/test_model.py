"""A model as a job: its images, its scores, what it refuses."""

from __future__ import annotations

import nnabla as nn
import nnabla.functions as F
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nnabla_dqa.data import DataError
from nnabla_dqa.distributed import ParallelError, SingleProcess
from nnabla_dqa.models import build
from nnabla_dqa.quantization import SAWB, MinMax
from nnabla_dqa.recipes.checks import RecipeError
from nnabla_dqa.recipes.parts import DataRecipe
from nnabla_dqa.solver.finite_check import NonFiniteError
from nnabla_dqa.training.run import train
from nnabla_dqa.training.tasks.evaluation import evaluate, score_sums
from nnabla_dqa.training.tasks.file_scores import evaluate_file
from nnabla_dqa.training.tasks.model import normalized
from nnabla_dqa.training.tasks.task import Task
from nnabla_dqa.training.update import Updater
from tests.data.files import write_image, write_records
from tests.training.experiments import CLASSES, KINDS, experiment, images, write_images
from tests.training.files import one_line

pytestmark = pytest.mark.filterwarnings("ignore::nnabla_dqa.layers.tensors.AttentionWarning")

MEAN, STD = (0.49, 0.48, 0.45), (0.25, 0.004, 0.002)


class Share(SingleProcess):
    """One of several processes, as far as one that trains nothing can tell."""

    def __init__(self, rank, size):
        self.rank, self.size = rank, size


def measured(job):
    """The scores of the graphs that a task evaluates."""
    goal = job.objective
    return evaluate(
        [goal.hard, *([goal.soft] if goal.soft else [])], job.validation, job.communicator
    )


def arrays_of(job):
    return {name: v.d.copy() for name, v in job.parameters().items()}


@pytest.mark.parametrize("axis", [1, 3])
def test_normalized_pixels(axis):
    """Also where std^2 is below the epsilon of NNabla's normalization."""
    shape = (2, 3, 4, 5) if axis == 1 else (2, 4, 5, 3)
    pixels = np.random.RandomState(0).rand(*shape)
    x = nn.Variable.from_numpy_array(pixels)
    y = normalized(x, MEAN, STD, axis)
    y.forward()
    by_channel = (1, 3, 1, 1) if axis == 1 else (1, 1, 1, 3)
    expected = (pixels - np.reshape(MEAN, by_channel)) / np.reshape(STD, by_channel)
    np.testing.assert_allclose(y.d, expected, rtol=2e-5, atol=2e-5)
    assert not nn.get_parameters()


def graph_of_pixels(job, pixels):
    """Logits of the network in training, made anew from ``job``'s parameters."""
    recipe, model = job.recipe.data, job.recipe.model
    shape = (1, 3, 1, 1)
    x = (pixels - np.reshape(recipe.mean, shape)) / np.reshape(recipe.std, shape)
    with nn.parameter_scope("", job.scope), nn.auto_forward(False):
        logits = build(
            model.name,
            nn.Variable.from_numpy_array(x),
            model.classes,
            True,
            job.recipe.mixture(),
            model.width,
            stem_stride=model.stem_stride,
        )
    logits.forward()
    return logits.d


@pytest.mark.parametrize("kind", KINDS)
def test_hits_are_those_of_the_network_before_its_update(kind, tmp_path):
    job = Task(experiment(tmp_path, **KINDS[kind]))
    batch = job.data.at_epoch(0).batch(np.arange(16))
    update = Updater(job)
    shared = nn.NdArray((1,))
    for step in range(3):
        expected = graph_of_pixels(job, batch["x"])
        update(batch, 0.05, step, shared)
        assert job.correct() == (expected.argmax(axis=1) == batch["y"][:, 0]).sum(), step


@pytest.mark.parametrize("kind", KINDS)
def test_weight_decay_leaves_the_normalization_of_pixels_alone(kind, tmp_path):
    keys = {"weight_decay": 0.5, "data": {"mean": MEAN, "std": STD}, **KINDS[kind]}
    job = Task(experiment(tmp_path, **keys))
    before = arrays_of(job)
    update, shared = Updater(job), nn.NdArray((1,))
    for step in range(2):
        update(job.data.batch(np.arange(16)), 0.1, step, shared)
    after = arrays_of(job)
    kept = [name for name, array in before.items() if (after[name] == array).all()]
    assert set(kept) >= {f"pixels/bn/{name}" for name in ("beta", "gamma", "mean", "var")}
    assert not any(name.startswith("pixels/") for name in job.solver.get_parameters())
    assert "stem/conv/W" not in kept


@pytest.mark.parametrize("kind", KINDS)
def test_evaluation_changes_nothing_and_is_repeatable(kind, tmp_path):
    job = Task(experiment(tmp_path, **KINDS[kind]))
    before = arrays_of(job)
    first = job.evaluate()
    assert job.evaluate() == first
    after = arrays_of(job)
    for name, array in before.items():
        np.testing.assert_array_equal(after[name], array, err_msg=name)
    assert first.metric == "accuracy"
    assert (first.soft is None) == (kind in ("Full precision", "Plain"))
    assert first.top5 is None


def test_the_same_weights_whatever_the_method(tmp_path):
    made = [arrays_of(Task(experiment(tmp_path, **keys))) for keys in KINDS.values()]
    for arrays in made[1:]:
        for name, array in made[0].items():
            np.testing.assert_array_equal(arrays[name], array, err_msg=name)


def test_soft_is_the_mixture_and_hard_the_lowest_bits(tmp_path):
    job = Task(experiment(tmp_path, quantizers="minmax:1,8"))
    for layer in job.layers:
        layer.state["temperature"].d = 0.03
        layer.state["alpha"].d = np.array([-50, 50])
        assert layer.attention() == pytest.approx([0, 1], abs=1e-9)
    goal = job.objective
    expected = measured(job)
    logits = [one.output.d.copy() for one in (goal.hard, goal.soft)]
    for bits, i in ((1, 0), (8, 1)):
        other = Task(experiment(tmp_path, quantizers=f"minmax:{bits}"))
        (found,) = measured(other)
        output = other.objective.hard.output.d
        np.testing.assert_allclose(output, logits[i], rtol=1e-5, atol=1e-5)
        assert found.value == expected[i].value
    assert not np.allclose(logits[0], logits[1], atol=1e-2)
    scores = job.evaluate()
    assert (scores.hard, scores.soft) == (expected[0].value, expected[1].value)
    for layer in job.layers:
        layer.state["hard"].d = np.array([1, 0])
    assert job.evaluate() == scores._replace(soft=None)


@given(st.integers(0, 2**31), st.integers(2, 12), st.booleans())
def test_ranks(seed, classes, ties):
    rng = np.random.RandomState(seed)
    logits = rng.randint(0, 4, (9, classes)) if ties else rng.randn(9, classes)
    labels = rng.randint(0, classes, (9, 1)).astype(np.float32)
    first = five = 0
    for row, (label,) in zip(logits.tolist(), labels.astype(int).tolist()):
        # sorted() is stable: of equal ones the first comes first, as in argmax.
        order = sorted(range(classes), key=lambda i: -row[i])
        first += order[0] == label
        five += label in order[:5]
    found = score_sums("accuracy", logits.astype(np.float32), labels)
    assert found == (first, five)


def test_a_constant_output_has_no_top_five():
    labels = np.arange(100, dtype=np.float32).reshape(-1, 1)
    assert score_sums("accuracy", np.zeros((100, 100), np.float32), labels) == (1, 5)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_an_output_that_is_not_finite_is_no_score(value):
    logits = np.zeros((2, 3), np.float32)
    logits[1, 2] = value
    with pytest.raises(NonFiniteError, match="NaN or infinite on the validation data"):
        score_sums("accuracy", logits, np.zeros((2, 1), np.float32))


def test_top_five_from_a_hundred_classes_on(tmp_path):
    write_images(tmp_path / "images.npz", classes=100, count=260)
    job = Task(experiment(tmp_path, model={"classes": 100}, data={"holdout": 0.5}))
    top5 = job.evaluate().top5
    assert top5 == measured(job)[0].top5
    assert 0 < top5 < 1


def test_processes_share_the_validation_images(tmp_path):
    recipe = experiment(tmp_path, data={"holdout": 0.3}, batch_size=12)
    whole = Task(recipe)
    (expected,) = measured(whole)
    for size in (2, 3):
        parts = [Task(recipe, Share(rank, size)) for rank in range(size)]
        found = [measured(part)[0] for part in parts]
        assert sum(one.samples for one in found) == expected.samples
        assert all(one.samples for one in found)
        correct = sum(one.value * one.samples for one in found)
        assert correct == pytest.approx(expected.value * expected.samples)


def test_the_last_mini_batch_of_an_evaluation_is_not_counted_twice(tmp_path, monkeypatch):
    recipe = experiment(tmp_path, data={"holdout": 0.5})
    expected = Task(recipe).evaluate()
    monkeypatch.setattr("nnabla_dqa.training.tasks.model.EVALUATION_BATCH", 7)
    job = Task(recipe)
    assert job.objective.hard.batch_size == 7
    assert measured(job)[0].samples == 32
    assert job.evaluate() == expected


def test_holdout_and_limit(tmp_path):
    jobs = [
        Task(experiment(tmp_path, seed=seed, data={"holdout": 0.25, **more}))
        for seed, more in ((0, {}), (7, {}), (0, {"limit": 20}), (0, {"limit": 1000}))
    ]
    assert [(len(job.data), len(job.validation)) for job in jobs] == [
        *((48, 16), (48, 16), (20, 16)),
        (48, 16),
    ]
    held = [job.validation.batch(np.arange(16))["x"] for job in jobs]
    rest = jobs[0].data.batch(np.arange(48))["x"]
    for other in held[1:]:
        np.testing.assert_array_equal(other, held[0])
    whole = np.sort(np.concatenate([held[0], rest]).sum(axis=(1, 2, 3)))
    expected = np.sort((images()[0].astype(np.float32) / 255).sum(axis=(1, 2, 3)))
    np.testing.assert_allclose(whole, expected, rtol=1e-6)
    # Augmentation is for training alone.
    seen = jobs[0].data.at_epoch(0).batch(np.arange(48))["x"]
    assert (seen != rest).any()
    assert jobs[2].identity() != jobs[0].identity() == Task(jobs[0].recipe).identity()


def test_cifar_files(tmp_path):
    for i in range(1, 6):
        write_records(tmp_path / "c" / f"data_batch_{i}.bin", 8, seed=i)
    write_records(tmp_path / "c" / "test_batch.bin", 5)
    data = {"train": str(tmp_path / "c"), "holdout": 0}
    job = Task(experiment(tmp_path, data=data, model={"classes": 10}))
    assert (len(job.data), len(job.validation), job.steps_per_epoch) == (40, 5, 2)
    assert measured(job)[0].samples == 5


def refused(folder, kind=DataError, communicator=None, **changes):
    with pytest.raises(kind) as error:
        Task(experiment(folder, **changes), communicator)
    return one_line(error)


WRONG = {
    "gray": (dict(x=np.zeros((32, 1, 8, 8)), y=np.zeros(32)), "images x of shape (3, H, W)"),
    "flat": (dict(x=np.zeros((32, 192)), y=np.zeros(32)), "images x of shape (3, H, W)"),
    "names": (dict(a=np.zeros((32, 3, 8, 8)), y=np.zeros(32)), "images x of shape (3, H, W)"),
    "wide": (dict(x=np.zeros((32, 3, 8, 8)), y=np.zeros((32, 2))), "'y' has samples of shape (2,)"),
    "few": (dict(x=np.zeros((20, 3, 8, 8)), y=np.zeros(20)), "15 samples, fewer than"),
}


@pytest.mark.parametrize("kind", WRONG)
def test_images_that_do_not_fit(kind, tmp_path):
    arrays, expected = WRONG[kind]
    np.savez(tmp_path / "images.npz", **arrays)
    message = refused(tmp_path, data={"augment": "none"})
    assert expected in message


def test_recipes_that_do_not_fit(tmp_path):
    message = refused(tmp_path, RecipeError, Share(0, 3))
    assert message == "key 'batch_size' must be a multiple of the number of processes, 3; got 16"
    message = refused(tmp_path, ParallelError, Share(0, 2), sync_normalization=True)
    assert "sync_normalization over several processes needs GPUs" in message
    assert "'model.channel_last' is for GPUs" in refused(
        tmp_path, RecipeError, model={"channel_last": True}
    )
    assert "leaves an empty part" in refused(tmp_path, data={"holdout": 0.001})


@pytest.mark.parametrize("label", [CLASSES, -1, 0.5])
def test_labels_that_the_network_does_not_know(label, tmp_path):
    x, y = images()
    np.savez(tmp_path / "images.npz", x=x, y=np.full(len(y), label))
    job = Task(experiment(tmp_path))
    with pytest.raises(DataError, match=f"label {label}.*0 to {CLASSES - 1}"):
        job.fill(job.data.batch(np.arange(16)))
    with pytest.raises(DataError, match=f"label {label}"):
        job.evaluate()


def photos(folder, broken=()):
    """Two classes of photos of different sizes; those named in ``broken`` are text."""
    for subset, count in (("train", 6), ("val", 4)):
        for label in ("ant", "bee"):
            for i in range(count):
                write_image(folder / subset / label / f"{i}.png", (30 + i, 40, 3), seed=i)
    for name in broken:
        (folder / name).write_text("no image")
    return {"train": str(folder), "augment": "random_resized_crop", "holdout": 0}


def test_photos_that_cannot_be_read_are_left_out_of_the_score(tmp_path):
    broken = ["val/ant/1.png", "val/bee/3.png", "train/ant/0.png"]
    data = photos(tmp_path / "p", broken)
    keys = {"data": {**data, "corrupt": "skip"}, "model": {"classes": 2}, "batch_size": 4}
    job = Task(experiment(tmp_path, **keys))
    assert job.data.shapes["x"] == (3, 32, 32)
    (found,) = measured(job)
    assert found.samples == 6
    assert job.evaluate().hard == found.value
    assert sorted(job.validation.skipped) == [str(tmp_path / "p" / n) for n in broken[:2]]
    update, shared = Updater(job), nn.NdArray((1,))
    for step, rows in enumerate(np.arange(12).reshape(3, 4)):
        assert np.isfinite(update(job.data.at_epoch(0).batch(rows), 0.1, step, shared))
    assert sorted(job.data.skipped) == [str(tmp_path / "p" / broken[2])]


def test_photos_that_cannot_be_read_are_errors_unless_the_recipe_says_otherwise(tmp_path):
    data = photos(tmp_path / "p", ["val/ant/1.png"])
    job = Task(experiment(tmp_path, data=data, model={"classes": 2}, batch_size=4))
    with pytest.raises(DataError, match=r"val/ant/1\.png"):
        job.evaluate()
    photos(tmp_path / "q", [f"val/{k}/{i}.png" for k in ("ant", "bee") for i in range(4)])
    data = {**data, "train": str(tmp_path / "q"), "corrupt": "skip"}
    job = Task(experiment(tmp_path, data=data, model={"classes": 2}, batch_size=4))
    with pytest.raises(DataError, match="no validation sample can be read"):
        job.evaluate()


def test_more_classes_of_photos_than_outputs(tmp_path):
    data = photos(tmp_path / "p")
    write_image(tmp_path / "p" / "train" / "cat" / "0.png")
    message = refused(tmp_path, data=data, model={"classes": 2}, batch_size=4)
    assert message.endswith("has 3 classes, the network has 2 (key 'model.classes')")


@pytest.mark.parametrize("kind", ["Full precision", "DQA"])
def test_what_is_deployed_has_its_channels_first(kind, tmp_path):
    """A net of a GPU, whose convolutions the CPU could not run, becomes one that it can."""
    first = Task(experiment(tmp_path, **KINDS[kind]))
    rng = np.random.RandomState(0)
    for name, v in first.parameters().items():
        if v.need_grad or name.endswith(("/mean", "/var")):
            v.d = np.abs(v.d + rng.uniform(0.0, 0.1, v.shape))
    with nn.context_scope(nn.Context(["cudnn:float", "cpu:float"], "CpuCachedArray", "0")):
        last = Task(experiment(tmp_path, model={"channel_last": True}, **KINDS[kind]))
    for name, v in last.parameters().items():
        array = first.parameters()[name].d
        v.d = array.transpose(0, 2, 3, 1) if array.ndim == 4 else array
    assert last.network.deployable.x.shape[1:] == (32, 32, 3)
    scope, graph = last.network.to_deploy()
    plain = first.network.deployable
    assert first.network.to_deploy() == (first.scope, plain)
    assert graph.x.shape == plain.x.shape
    with nn.parameter_scope("", scope):
        found = nn.get_parameters(grad_only=False)
        assert set(found) == set(first.parameters())
    batch = first.validation.batch(np.arange(graph.x.shape[0]))["x"]
    for one in (graph, plain):
        one.x.d = batch
        one.logits.forward()
    np.testing.assert_array_equal(graph.logits.d, plain.logits.d)


def test_statistics_are_computed_anew_from_the_quantized_network(tmp_path):
    """Those of the first layer, against its inputs, augmented as in training, and weights alone."""
    task = Task(experiment(tmp_path, quantizers="minmax:2"))
    before = arrays_of(task)
    task.estimate_statistics(48)
    after = arrays_of(task)
    changed = {name for name, array in before.items() if (after[name] != array).any()}
    running = {n for n in before if n.endswith(("/mean", "/var")) and not n.startswith("pixels")}
    assert changed == running
    recipe, shape = task.recipe.data, (1, 3, 1, 1)
    x = task.data.at_epoch(0).batch(np.arange(48))["x"]
    x = (x - np.reshape(recipe.mean, shape)) / np.reshape(recipe.std, shape)
    w = MinMax(2).quantize(after["stem/conv/W"])
    variables = [nn.Variable.from_numpy_array(array) for array in (x, w)]
    h = F.convolution(*variables, pad=(1, 1), stride=(2, 2))
    h.forward()
    expected = h.d.astype(np.float64)
    for name, value in (
        ("mean", expected.mean((0, 2, 3))),
        ("var", expected.var((0, 2, 3), ddof=1)),
    ):
        np.testing.assert_allclose(after[f"stem/bn/{name}"].ravel(), value, rtol=1e-3, atol=1e-5)


def test_rules_choose_quantizers_by_the_names_of_layers(tmp_path):
    rules = [
        {"layers": "fc*", "quantizers": "float"},
        {"layers": "stem*", "quantizers": "sawb:2@channel"},
    ]
    task = Task(experiment(tmp_path, quantizers="minmax:2,4,8", rules=rules))
    found = {layer.name: layer.mixture.quantizers for layer in task.layers}
    (stem,) = found["stem/conv"]
    assert (type(stem), stem.axis) == (SAWB, 0)
    assert all(len(q) == 3 for name, q in found.items() if name.startswith("stage"))
    with pytest.raises(ValueError, match="rule 'head' matches no layer; the layers are: stem/conv"):
        Task(experiment(tmp_path, rules=[{"layers": "head", "quantizers": "bwn"}]))


def test_a_model_is_deployed_to_a_file(tmp_path):
    recipe = experiment(tmp_path, epochs=1, quantizers="minmax:2")
    result = train(recipe, target=tmp_path / "small.nnp")
    assert (result.path, result.folder) == (tmp_path / "small.nnp", None)
    assert result.checkpoint == tmp_path / "small.nnp.checkpoint"
    assert evaluate_file(result.path, DataRecipe(str(tmp_path / "images.npz"))).value > 0


def test_a_rule_for_every_layer_trains_as_one_mixture_for_all(tmp_path):
    """Bit for bit: the float net converted, and the layers built."""
    rules = [{"layers": "*", "quantizers": "minmax:2,4,8"}]
    keys = ({"quantizers": "minmax:2,4,8"}, {"rules": rules})
    made = [Task(experiment(tmp_path, **key)) for key in keys]
    for task in made:
        update, shared = Updater(task), nn.NdArray((1,))
        for step in range(3):
            update(task.data.at_epoch(0).batch(np.arange(16)), 0.05, step, shared)
    first, second = map(arrays_of, made)
    assert set(first) == set(second)
    for name, array in first.items():
        np.testing.assert_array_equal(array, second[name], err_msg=name)


def test_activations_of_a_model_are_quantized_behind_its_first_layer(tmp_path):
    keys = {"quantizers": "sawb:2", "activations": "pact:2", "data": {"mean": MEAN, "std": STD}}
    job = Task(experiment(tmp_path, **keys))
    entering = [t.name for t in job.layers if not t.is_weight]
    assert entering
    assert not any(name.startswith("stem") for name in entering)
    assert len(entering) == sum(t.is_weight for t in job.layers) - 1
    update, shared = Updater(job), nn.NdArray((1,))
    update(job.data.batch(np.arange(16)), 0.01, 0, shared)
    assert all(np.isfinite(v.d).all() for v in job.parameters().values())
