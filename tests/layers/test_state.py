"""State is never taken for another layer's: not while building, and not after loading."""

from __future__ import annotations

import dataclasses
import warnings
from typing import ClassVar, Tuple

import nnabla as nn
import nnabla.functions as F
import nnabla.solvers as S
import numpy as np
import pytest

import nnabla_dqa as dqa
import nnabla_dqa.parametric_functions as PF
from nnabla_dqa.layers import config
from nnabla_dqa.quantization import Levels
from nnabla_dqa.quantization.registry import QUANTIZERS
from nnabla_dqa.regularization import penalty_vector

MINMAX = (dqa.MinMax(2), dqa.MinMax(4), dqa.MinMax(8))
SAWB = (dqa.SAWB(2), dqa.SAWB(4), dqa.SAWB(8))


def build(quantizers, mixing=None, target=0):
    x = nn.Variable((2, 6))
    with dqa.quantizers(*quantizers, mixing=mixing, target=target):
        return x, PF.dqa_affine(F.relu(PF.dqa_affine(x, 5, name="one")), 3, name="two")


OTHERS = {
    "quantizers": ((MINMAX, None), (SAWB, None)),
    "rule's option": ((MINMAX, None), (MINMAX, dqa.Attention(normalize="none"))),
    "rule": ((MINMAX, None), (MINMAX, dqa.BinaryRelax())),
    "one quantizer": ((MINMAX[:1], None), (SAWB[:1], None)),
    "number": ((MINMAX, None), (MINMAX[:2], dqa.Attention(normalize="none"))),
}


# NNabla itself refuses to load arrays of another shape.
@pytest.mark.parametrize("case", [case for case in OTHERS if case != "number"])
def test_a_checkpoint_of_another_net_is_refused_after_building(case, tmp_path):
    saved, built = OTHERS[case]
    build(*saved)
    nn.save_parameters(str(tmp_path / "c.h5"))
    nn.clear_parameters()
    x, y = build(*built)
    nn.load_parameters(str(tmp_path / "c.h5"))
    schedule = dqa.TemperatureSchedule(10) if len(built[0]) > 1 else None
    uses = {
        "attach": lambda: dqa.attach(S.Sgd(0.1), schedule),
        "report": dqa.report,
        "regularizer": lambda: dqa.regularizer(1),
        "deploy": lambda: dqa.deploy(
            str(tmp_path / "d.nnp"), {"x": x}, {"y": y}, allow_untrained=True
        ),
    }
    if built[0][0].bits < 32 and dqa.available_backends()["cpu"].startswith("fused"):
        uses["saving"] = lambda: nn.graph_def.create_graph_from_variable("net", y)
    for use in uses.values():
        with pytest.raises(ValueError, match="layer one/affine: its state belongs to other"):
            use()
    assert not (tmp_path / "d.nnp").exists()


@pytest.mark.parametrize("case", OTHERS)
def test_a_checkpoint_of_another_net_is_refused_while_building(case, tmp_path):
    saved, built = OTHERS[case]
    build(*saved)
    nn.save_parameters(str(tmp_path / "c.h5"))
    nn.clear_parameters()
    nn.load_parameters(str(tmp_path / "c.h5"))
    with pytest.raises(ValueError, match="layer one/affine: its state belongs to other"):
        build(*built)


def test_another_target_is_another_net(tmp_path):
    two = (dqa.MinMax(2), dqa.SAWB(2))
    build(two, dqa.BinaryRelax())
    nn.save_parameters(str(tmp_path / "c.h5"))
    nn.clear_parameters()
    build(two, dqa.BinaryRelax(), target=1)
    nn.load_parameters(str(tmp_path / "c.h5"))
    with pytest.raises(ValueError, match=r"one/affine: .*target SAWB\(bits=2"):
        dqa.report()


@pytest.mark.parametrize("extension", ["h5", "protobuf"])
def test_the_right_checkpoint_is_taken_in_either_order(extension, tmp_path):
    path = str(tmp_path / f"c.{extension}")
    build(MINMAX)
    dqa.find_quantized()[0].state["alpha"].d = [0.1, 0.2, 0.9]
    nn.save_parameters(path)
    for order in ("build first", "load first"):
        nn.clear_parameters()
        if order == "load first":
            nn.load_parameters(path)
        build(MINMAX)
        nn.load_parameters(path)
        dqa.attach(S.Sgd(0.1), dqa.TemperatureSchedule(10))
        assert dqa.report().layers[0].argmax == 2


def test_a_float_checkpoint_loads_into_a_dqa_net(tmp_path):
    x = nn.Variable((2, 6))
    PF.affine(F.relu(PF.affine(x, 5, name="one")), 3, name="two")
    nn.save_parameters(str(tmp_path / "c.h5"))
    weights = nn.get_parameters()["one/affine/W"].d.copy()
    nn.clear_parameters()
    build(MINMAX)
    nn.load_parameters(str(tmp_path / "c.h5"))
    dqa.attach(S.Sgd(0.1), dqa.TemperatureSchedule(10))
    assert np.array_equal(dqa.find_quantized()[0].weight.d, weights)


def test_what_a_layer_is_stands_in_its_scope():
    """A copied scope knows its layers, and so does a process that has loaded it."""
    build(MINMAX)
    scope = nn.parameter.get_current_parameter_scope()
    copied = type(scope)()
    with nn.parameter_scope("", copied):
        with nn.parameter_scope("", scope):
            parameters = nn.get_parameters(grad_only=False)
        for name, v in parameters.items():
            nn.parameter.set_parameter(name, nn.Variable.from_numpy_array(v.d.copy()))
    found, original = dqa.find_quantized(copied), dqa.find_quantized(scope)
    assert [layer.mixture for layer in found] == [layer.mixture for layer in original]
    assert [layer.name for layer in found] == ["one/affine", "two/affine"]
    assert dqa.report(copied).layers[0].quantizers == ("MinMax2", "MinMax4", "MinMax8")


def test_a_damaged_configuration_is_named():
    build(MINMAX)
    (entry,) = dqa.find_quantized()[0].arrays["config"].values()
    entry.d = np.roll(entry.d, 1)
    config._READ.clear()  # as in another process
    with pytest.raises(ValueError, match=r"layer one/affine: its configuration \w+ is damaged"):
        dqa.find_quantized()


def test_equal_bit_widths_and_a_chosen_target():
    two = (dqa.MinMax(2), dqa.SAWB(2), dqa.MinMax(4))
    build(two, target=1)
    solver = dqa.attach(S.Sgd(0.1), dqa.TemperatureSchedule(2, hard_fraction=0.5))
    solver.set_parameters(nn.get_parameters())
    for layer in dqa.find_quantized():
        layer.state["alpha"].d = [0.1, 0.9, 0.2]
    solver.annealer()
    layer = dqa.find_quantized()[0]
    assert layer.coefficients().tolist() == [0, 1, 0]
    expected = dqa.SAWB(2).quantize(layer.weight.d)
    np.testing.assert_array_equal(layer.mixed_weights(), expected)
    assert dqa.report().layers[0].bits == 2
    assert dqa.report().layers[0].on_target


def test_penalty_of_equal_bit_widths_is_equal():
    build((dqa.MinMax(2), dqa.SAWB(2), dqa.MinMax(4)))
    assert penalty_vector(dqa.find_quantized()[0], "powers_of_4") == [1, 1, 4]


def test_weights_alone_go_into_any_net(tmp_path):
    """Also into one with a single quantizer, before or after it is built."""
    path = str(tmp_path / "c.h5")
    build(MINMAX)
    dqa.attach(S.Sgd(0.1), dqa.TemperatureSchedule(10))
    nn.save_parameters(path)
    weights = nn.get_parameters()["one/affine/W"].d.copy()
    for order in ("build first", "load first"):
        nn.clear_parameters()
        if order == "build first":
            build(SAWB[:1])
        left = dqa.load_weights(path)
        build(SAWB[:1])
        assert "dqa/step" in left
        assert not any(
            "dqa" in name for name in set(nn.get_parameters(grad_only=False)) & set(left)
        )
        assert np.array_equal(dqa.find_quantized()[0].weight.d, weights)
        assert dqa.report().layers[0].quantizers == ("SAWB2",)


def test_weights_of_another_shape_load_nothing(tmp_path):
    build(MINMAX)
    nn.save_parameters(str(tmp_path / "c.h5"))
    nn.clear_parameters()
    PF.affine(nn.Variable((2, 6)), 5, name="one")
    PF.affine(nn.Variable((2, 6)), 3, name="two")
    before = nn.get_parameters()["one/affine/W"].d.copy()
    with pytest.raises(ValueError, match=r"two/affine/W has shape \(5, 3\), in the model \(6, 3\)"):
        dqa.load_weights(str(tmp_path / "c.h5"))
    assert np.array_equal(nn.get_parameters()["one/affine/W"].d, before)


def saved_graph(path):
    """A training graph saved by NNabla itself: state without the layers' configuration."""
    _, y = build(MINMAX)
    for layer in dqa.find_quantized():
        layer.set_hard(0)
        layer.state["temperature"].d = 0.03
    nn.graph_def.create_graph_from_variable("net", y).save(str(path))
    nn.clear_parameters()


def test_state_that_does_not_say_whose_it_is_is_refused(tmp_path):
    saved_graph(tmp_path / "t.nnp")
    nn.load_parameters(str(tmp_path / "t.nnp"))
    with pytest.raises(ValueError, match=r"layer one/affine: its state .*hard.* does not say"):
        build(SAWB)


def test_weights_alone_come_from_a_saved_graph_too(tmp_path):
    saved_graph(tmp_path / "t.nnp")
    build(SAWB)
    left = dqa.load_weights(tmp_path / "t.nnp")
    assert {name.rpartition("/")[2] for name in left} == {"alpha", "temperature", "hard"}
    assert not dqa.report().layers[0].hard


@pytest.mark.parametrize("scope", ["dqa", "mydqa", "a.dqa"])
def test_a_users_scope_may_have_such_a_name(scope, tmp_path):
    with nn.parameter_scope(scope):
        build(MINMAX)
        with nn.parameter_scope("config"):
            PF.affine(nn.Variable((2, 6)), 5, name="own")
    assert [layer.name for layer in dqa.find_quantized()] == [
        f"{scope}/one/affine",
        f"{scope}/two/affine",
    ]
    nn.save_parameters(str(tmp_path / "c.h5"))
    nn.clear_parameters()
    dqa.load_weights(tmp_path / "c.h5")
    names = set(nn.get_parameters(grad_only=False))
    assert f"{scope}/config/own/affine/W" in names
    assert not any(name.endswith("/alpha") for name in names)


def test_weights_of_another_model_are_refused(tmp_path):
    build(MINMAX)
    nn.save_parameters(str(tmp_path / "c.h5"))
    nn.clear_parameters()
    PF.affine(nn.Variable((2, 6)), 5, name="other")
    with pytest.raises(ValueError, match=r"none of its parameters \(one/affine/W"):
        dqa.load_weights(tmp_path / "c.h5")
    with pytest.raises(OSError, match=r"no\.h5"):
        dqa.load_weights(tmp_path / "no.h5")


@dataclasses.dataclass(frozen=True)
class Book(dqa.Quantizer):
    """The nearest of some points, for the tests of quantizers with a sequence."""

    points: Tuple[float, ...]
    bits: ClassVar[int] = 2

    def grid(self, statistics):
        points = F.constant(0.0, (1, len(self.points)))
        w = statistics.w
        steps = [
            F.mul_scalar(F.add_scalar(F.sign(F.add_scalar(w, -(a + b) / 2)), 1.0), (b - a) / 2)
            for a, b in zip(self.points, self.points[1:])
        ]
        levels = F.concatenate(
            *[
                F.add_scalar(F.slice(points, (0, i), (1, i + 1)), p)
                for i, p in enumerate(self.points)
            ]
        )
        first = F.add_scalar(F.mul_scalar(w, 0.0), self.points[0])
        return Levels(F.add_n(first, *steps), levels)


def test_a_quantizer_with_a_sequence_is_known_in_the_next_process(tmp_path, monkeypatch):
    monkeypatch.setattr(QUANTIZERS, "_types", {**QUANTIZERS._types, "Book": Book})
    book = Book((-1.0, -0.25, 0.0, 0.5))
    build([book])
    nn.save_parameters(str(tmp_path / "c.h5"))
    nn.clear_parameters()
    config._READ.clear()  # as in another process
    nn.load_parameters(str(tmp_path / "c.h5"))
    build([book])
    (layer, _) = dqa.find_quantized()
    assert layer.mixture.quantizers == (book,)
    assert set(np.unique(layer.mixed_weights())) <= {-1.0, -0.25, 0.0, 0.5}
    with pytest.raises(ValueError, match="use tuples for its fields"):
        dqa.make_mixture(Book([-1.0, 1.0]))


def test_one_quantizer_is_the_same_layer_whatever_the_rule():
    build(MINMAX[:1])
    build(MINMAX[:1], dqa.Attention())
    assert isinstance(dqa.find_quantized()[0].mixture.mixing, dqa.Single)


def test_old_names_warn_once_at_the_users_line():
    for code in ("from nnabla_dqa import Layer", "import nnabla_dqa; nnabla_dqa.find_layers()"):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            exec(compile(code, "users_file.py", "exec"), {"__name__": "user"})
        assert [(w.category, w.filename) for w in caught] == [(DeprecationWarning, "users_file.py")]
