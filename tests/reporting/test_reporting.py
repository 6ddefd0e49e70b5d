"""Tables, histories and pictures."""

from __future__ import annotations

import nnabla as nn
import numpy as np
import pytest

import nnabla_dqa as dqa
import nnabla_dqa.parametric_functions as PF
from nnabla_dqa.reporting import AttentionHistory, plot_attention

SET = (dqa.MinMax(2), dqa.MinMax(4), dqa.MinMax(8))


KERNELS = dqa.available_backends()["cpu"].startswith("fused")


class Own(dqa.MinMax):
    """A quantizer without a kernel."""


def build():
    x = nn.Variable((1, 4))
    PF.dqa_affine(x, 5, name="first", quantizers=SET)
    PF.dqa_affine(x, 6, name="second", quantizers=SET)
    PF.dqa_affine(x, 6, name="plain", quantizers=[dqa.BWN()])


def test_report_rows():
    build()
    rows = dqa.report().layers
    assert [row.name for row in rows] == ["first/affine", "second/affine", "plain/affine"]
    assert [row.weights for row in rows] == [20, 24, 24]
    assert [row.bits for row in rows] == [2, 2, 1]
    assert rows[0].quantizers == ("MinMax2", "MinMax4", "MinMax8")
    assert rows[2].quantizers == ("BWN",)
    assert rows[2].attention == (1.0,)
    assert [row.hard for row in rows] == [False, False, True]
    assert sum(rows[0].attention) == pytest.approx(1)
    table = str(dqa.report()).splitlines()
    assert table[0].split() == [
        "layer",
        "function",
        "weights",
        "quantizers",
        "attention",
        "arg",
        "max",
        "bits",
        "hard",
        "backend",
    ]
    assert len(table) == 5
    nn.clear_parameters()
    with pytest.raises(ValueError, match=r"report: .* no DQA layer"):
        dqa.report()


def test_report_says_why_a_layer_has_no_kernel():
    PF.dqa_affine(nn.Variable((1, 4)), 5, name="own", quantizers=[Own(2), *SET[1:]])
    PF.dqa_affine(nn.Variable((1, 4)), 5, name="known", quantizers=SET)
    own, known = (row.backend for row in dqa.report().layers)
    assert own == "portable: Own has no kernel"
    assert known == ("fused" if KERNELS else known)
    assert "portable: Own has no kernel" in str(dqa.report())


def test_report_shows_attention_also_when_hard():
    build()
    layer = dqa.find_quantized()[0]
    layer.state["alpha"].d = [0.1, 0.2, 0.9]
    layer.state["temperature"].d = 0.03
    layer.state["hard"].d = [1, 0, 0]
    row = dqa.report().layers[0]
    assert row.argmax == 2
    assert row.hard
    assert layer.coefficients().tolist() == [1, 0, 0]
    np.testing.assert_array_equal(layer.mixed_weights(), SET[0].quantize(layer.weight.d))
    layer.state["hard"].d = 0
    assert layer.coefficients()[2] == pytest.approx(1)


def test_history_and_picture(tmp_path):
    build()
    history = AttentionHistory()
    with pytest.raises(ValueError, match="history is empty"):
        plot_attention(history, tmp_path / "a.png")
    annealer = dqa.Annealer(dqa.TemperatureSchedule(steps=20))
    for step in range(20):
        history.record(step, curve=step in (0, 10, 19))
        annealer()
    assert history.steps == list(range(20))
    assert history.temperatures[0] > history.temperatures[-1]
    assert [c.step for c in history.curves] == [0, 10, 19]
    assert len(np.unique(history.curves[-1].mixed)) <= 4
    assert (np.diff(history.curves[0].weights) >= 0).all()
    plot_attention(history, tmp_path / "a.png", "title", soft_steps=18)
    data = (tmp_path / "a.png").read_bytes()
    assert data.startswith(b"\x89PNG")
    assert len(data) > 10_000
    nn.clear_parameters()
    with pytest.raises(ValueError, match="no layer in the parameter scope mixes"):
        history.record(0)


def test_history_follows_the_first_layer_that_mixes():
    x = nn.Variable((1, 4))
    PF.dqa_affine(x, 5, name="float", quantizers=[dqa.FullPrecision()])
    PF.dqa_affine(x, 5, name="mixed", quantizers=SET)
    PF.dqa_affine(x, 5, name="other", quantizers=(dqa.BWN(), *SET[1:]))
    history = AttentionHistory()
    history.record(0, curve=True)
    assert history.quantizers == ("MinMax2", "MinMax4", "MinMax8")
    assert list(history.attention) == ["mixed/affine"]
    assert history.temperatures == [100]


def test_picture_without_temperature_or_curves(tmp_path):
    x = nn.Variable((1, 4))
    PF.dqa_affine(x, 5, name="l", quantizers=SET, mixing=dqa.BinaryRelax())
    history = AttentionHistory()
    history.record(0)
    history.record(1)
    plot_attention(history, tmp_path / "a.png")
    assert (tmp_path / "a.png").stat().st_size > 5_000
