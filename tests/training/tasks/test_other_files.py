"""Training files that Neural Network Console would not have written like this."""

from __future__ import annotations

import nnabla as nn
import nnabla.functions as F
import nnabla.parametric_functions as PF
import numpy as np
import pytest
from nnabla.utils.save import save

import nnabla_dqa as dqa
from nnabla_dqa.data import DataError
from nnabla_dqa.nnp_format.archive import Archive
from nnabla_dqa.nnp_format.members import NNPError
from nnabla_dqa.nnp_format.parameters import Parameter
from tests.training.files import convert, one_line


def write(path, outputs, inputs, variable_batch_size=True):
    """A file with one network, its executor, and nothing about training."""
    network = {"name": "net", "batch_size": 4, "outputs": outputs, "names": inputs}
    executor = {"name": "run", "network": "net", "data": list(inputs), "output": list(outputs)}
    contents = {"networks": [network], "executors": [executor]}
    save(str(path), contents, variable_batch_size=variable_batch_size)
    nn.clear_parameters()
    return convert(path)


def data(folder, name="d.npz", **columns):
    np.savez(folder / name, **columns)
    return str(folder / name)


def noise(*shape):
    return np.random.RandomState(0).randn(*shape).astype(np.float32)


def recipe(train, **options):
    return dqa.Recipe(train, **{"epochs": 1, "batch_size": 4, "loss": "distillation", **options})


def two_inputs(folder):
    a, b = nn.Variable((4, 5)), nn.Variable((4, 5))
    return write(folder / "m.nnp", {"y": PF.affine(a + b, 3, name="fc")}, {"a": a, "b": b})


def test_one_column_does_not_feed_two_inputs(tmp_path):
    source = two_inputs(tmp_path)
    with pytest.raises(DataError, match="needs column 'b', as the file says") as error:
        dqa.train(source, recipe(data(tmp_path, x=noise(8, 5))), tmp_path / "t.nnp")
    one_line(error)
    columns = dqa.DataRecipe(data(tmp_path, x=noise(8, 5)), inputs={"a": "x", "b": "x"})
    dqa.train(source, recipe(columns), tmp_path / "t.nnp")
    both = data(tmp_path, "e.npz", a=noise(8, 5), b=noise(8, 5))
    dqa.train(source, recipe(both), tmp_path / "u.nnp")


def test_a_fixed_batch_is_not_filled_with_copies(tmp_path):
    x = nn.Variable((4, 5))
    outputs = {"y": PF.affine(x, 3, name="fc")}
    source = write(tmp_path / "m.nnp", outputs, {"x": x}, variable_batch_size=False)
    place = data(tmp_path, x=noise(12, 5))
    for size in (2, 6):
        with pytest.raises(dqa.RecipeError, match=f"fixed batch of 4, not {size}") as error:
            dqa.train(source, recipe(place, batch_size=size), tmp_path / "t.nnp")
        one_line(error)
    dqa.train(source, recipe(place), tmp_path / "t.nnp")
    score = dqa.evaluate_file(source, dqa.DataRecipe(data(tmp_path, x=noise(6, 5), y=noise(6, 3))))
    assert score.samples == 6


@pytest.mark.parametrize("missing", ["no_scale", "no_bias"])
def test_normalization_without_scale_or_shift(missing, tmp_path):
    """Its statistics are not weights: no solver moves them."""
    x = nn.Variable((4, 2, 3, 3))
    h = PF.convolution(x, 4, (3, 3), name="c")
    h = PF.batch_normalization(h, batch_stat=False, name="bn", **{missing: True})
    path = tmp_path / "m.nnp"
    source = write(path, {"y": F.mean(h, axis=(2, 3))}, {"x": x})
    place = data(tmp_path, x=noise(16, 2, 3, 3))
    options = dict(weight_decay=0.5, learning_rate=1e-9, update_normalization=16)
    dqa.train(source, recipe(place, **options), tmp_path / "t.nnp")
    after = Archive.read(tmp_path / "t.nnp").parameters
    w = dqa.MinMax(2).quantize(after["c/conv/W"].array)
    windows = np.lib.stride_tricks.sliding_window_view(noise(16, 2, 3, 3), (3, 3), axis=(2, 3))
    h = np.einsum("bijkmn,oimn->bojk", windows, w) + after["c/conv/b"].array.reshape(1, -1, 1, 1)
    np.testing.assert_allclose(after["bn/bn/mean"].array.ravel(), h.mean((0, 2, 3)), atol=1e-5)


def test_weights_that_the_file_does_not_train(tmp_path):
    x = nn.Variable((4, 5))
    h = F.relu(PF.affine(x, 6, name="a"))
    write(tmp_path / "m.nnp", {"y": PF.affine(h, 3, name="b")}, {"x": x})
    place = data(tmp_path, x=noise(8, 5))

    def frozen(names):
        archive = Archive.read(tmp_path / "m.nnp")
        for name in names:
            archive.parameters[name] = Parameter(archive.parameters[name].array, False)
        archive.write(tmp_path / "frozen.nnp")
        return convert(tmp_path / "frozen.nnp")

    told = []
    source = frozen(["a/affine/W"])
    dqa.train(source, recipe(place), tmp_path / "t.nnp", on_message=told.append)
    assert any("marked as not to be trained: a/affine/W" in message for message in told)
    with pytest.raises(NNPError, match="all weights are marked as not to be trained") as error:
        dqa.train(frozen(["a/affine/W", "b/affine/W"]), recipe(place), tmp_path / "u.nnp")
    one_line(error)


def test_nothing_that_is_read_is_overwritten(tmp_path):
    source = two_inputs(tmp_path)
    place = data(tmp_path, a=noise(8, 5), b=noise(8, 5))
    for target, options in ((source, {}), (tmp_path / "m.nnp", {"teacher": tmp_path / "m.nnp"})):
        options = {key: str(value) for key, value in options.items()}
        before = target.read_bytes()
        with pytest.raises(NNPError, match="is an input, which is never overwritten"):
            dqa.train(source, recipe(place, **options), target)
        assert target.read_bytes() == before
    before = source.read_bytes()
    with pytest.raises(NNPError, match="is an input, which is never overwritten"):
        dqa.deploy_file(source, source, allow_untrained=True)
    assert source.read_bytes() == before


def test_too_few_steps_for_a_hard_phase_are_told(tmp_path):
    source = two_inputs(tmp_path)
    place = data(tmp_path, a=noise(4, 5), b=noise(4, 5))
    training = dqa.train(source, recipe(place), tmp_path / "t.nnp")
    assert any("too few for a hard phase" in message for message in training.messages)


def test_a_training_that_was_moved_goes_on(tmp_path):
    source = two_inputs(tmp_path)
    columns = dict(a=noise(8, 5), b=noise(8, 5))
    first, second = tmp_path / "one", tmp_path / "two"
    for folder in (first, second):
        folder.mkdir()
    dqa.train(source, recipe(data(first, **columns)), tmp_path / "t.nnp")
    moved = recipe(data(second, **columns))
    assert len(dqa.train(source, moved, tmp_path / "t.nnp", resume=True).epochs) == 1


def test_an_output_that_is_not_a_number_has_no_score(tmp_path):
    x = nn.Variable((4, 5))
    source = write(tmp_path / "m.nnp", {"y": F.log(PF.affine(x, 3, name="fc"))}, {"x": x})
    place = data(tmp_path, x=noise(8, 5), y=noise(8, 3))
    with pytest.raises(dqa.NonFiniteError, match="output is NaN"):
        dqa.evaluate_file(source, dqa.DataRecipe(place))
