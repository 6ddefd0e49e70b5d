"""The layers of a scope: found again where something has changed, and only there."""

from __future__ import annotations

import nnabla as nn
import numpy as np
import pytest

import nnabla_dqa as dqa
import nnabla_dqa.parametric_functions as PF
from nnabla_dqa.solver.known_layers import KnownLayers


def build(name):
    with dqa.quantizers(dqa.MinMax(2), dqa.MinMax(4), dqa.MinMax(8)):
        PF.dqa_affine(nn.Variable((2, 4)), 3, name=name)


def test_layers_that_come_go_and_change():
    known = KnownLayers(nn.parameter.get_current_parameter_scope())
    assert known() == []
    build("a")
    first = known()
    assert [layer.name for layer in first] == ["a/affine"]
    assert known() is first
    build("a")
    nn.get_parameters()["a/affine/W"].d = 3
    assert known() is first
    build("b")
    both = known()
    assert [layer.name for layer in both] == ["a/affine", "b/affine"]
    nn.parameter.set_parameter("a/affine/dqa/alpha", nn.Variable((3,), need_grad=True))
    assert known() is not both
    assert known()[0].state["alpha"] == nn.get_parameters()["a/affine/dqa/alpha"]
    nn.parameter.pop_parameter("b/affine/W")
    assert [layer.name for layer in known()] == ["a/affine"]


def test_state_of_another_net_is_refused_at_once(tmp_path):
    build("a")
    nn.save_parameters(str(tmp_path / "p.h5"))
    nn.clear_parameters()
    with dqa.quantizers(dqa.MinMax(2), dqa.MinMax(3), dqa.MinMax(8)):
        PF.dqa_affine(nn.Variable((2, 4)), 3, name="a")
    known = KnownLayers(nn.parameter.get_current_parameter_scope())
    known()
    nn.load_parameters(str(tmp_path / "p.h5"))
    with pytest.raises(ValueError, match="layer a/affine: its state belongs to other quantizers"):
        known()


def test_hard_is_written_when_it_changes_in_float32(monkeypatch):
    build("a")
    written = []
    set_hard = type(dqa.find_quantized()[0]).set_hard
    monkeypatch.setattr(
        type(dqa.find_quantized()[0]),
        "set_hard",
        lambda self, index: written.append(index) or set_hard(self, index),
    )
    annealer = dqa.Annealer(dqa.TemperatureSchedule(steps=10, hard_fraction=0.4))
    for _ in range(9):
        annealer()
        (layer,) = dqa.find_quantized()
        assert layer.is_hard == annealer.is_hard
    assert written == [None, 0]
    assert layer.state["hard"].data.dtype == np.float32
    annealer.apply()
    assert written == [None, 0, 0]
    annealer.step_array.data = 2
    annealer()
    assert written == [None, 0, 0, None]
    assert not layer.is_hard
    build("b")
    annealer()
    assert written == [None, 0, 0, None, None, None]
