"""The quantizers and the mixing rule that CONTRIBUTING.md shows work as they are printed there."""

from __future__ import annotations

import re
from pathlib import Path

import nnabla as nn
import nnabla.functions as F
import nnabla.solvers as S
import numpy as np
import pytest

import nnabla_dqa as dqa
import nnabla_dqa.parametric_functions as PF
from nnabla_dqa.mixing import MIXING_RULES
from nnabla_dqa.quantization import quantizer_from_json
from nnabla_dqa.quantization.registry import QUANTIZERS

PAGE = Path(__file__).resolve().parent.parent / "CONTRIBUTING.md"


@pytest.fixture
def shown(monkeypatch):
    """What the page's code defines; it has been run, its assertions included."""
    for registry in (QUANTIZERS, MIXING_RULES):
        monkeypatch.setattr(registry, "_types", dict(registry._types))
    scope = {"__name__": "contributed"}
    for block in re.findall(r"```python\n(.*?)```", PAGE.read_text("utf-8"), re.S):
        exec(compile(block, str(PAGE), "exec", dont_inherit=True), scope)
    nn.clear_parameters()
    return scope


def test_the_new_quantizer(shown, tmp_path):
    quantizer = shown["AbsMean"](channel_axis=0)
    assert quantizer_from_json(quantizer.to_json()) == quantizer
    x = nn.Variable((1, 3, 8, 8))
    set_ = (quantizer, *(dqa.MinMax(b, channel_axis=0) for b in (4, 8)))
    y = PF.dqa_convolution(x, 4, (3, 3), name="c", quantizers=set_)
    result = dqa.deploy(tmp_path / "d.nnp", {"x": x}, {"y": y}, allow_untrained=True)
    assert result.layers[0].values <= 3
    w = nn.graph_def.load(str(tmp_path / "d.nnp")).get_parameters()["c/conv/W"].d
    np.testing.assert_array_equal(w, quantizer.quantize(nn.get_parameters()["c/conv/W"].d))


def train(quantizers, mixing=None, steps=20):
    """A layer that learns to give 1; its losses."""
    x = nn.Variable.from_numpy_array(np.random.RandomState(0).randn(16, 8))
    y = PF.dqa_affine(x, 4, name="fc", quantizers=quantizers, mixing=mixing)
    loss = F.mean(F.squared_error(y, F.constant(1.0, y.shape)))
    rule = dqa.find_quantized()[0].mixture.mixing
    solver = dqa.attach(S.Adam(0.02), rule.default_schedule(steps, 5, hard_fraction=0.5))
    solver.set_parameters(nn.get_parameters())
    losses = []
    for _ in range(steps):
        loss.forward()
        solver.zero_grad()
        loss.backward()
        solver.update()
        losses.append(float(loss.d))
    return x, y, losses


def test_the_quantizer_with_state(shown, tmp_path):
    ternary = shown["LearnedTernary"]()
    assert quantizer_from_json(ternary.to_json()) == ternary
    x, y, losses = train([ternary])
    (layer,) = dqa.find_quantized()
    assert losses[-1] < losses[0]
    assert layer.state["0/scale"].d != pytest.approx(np.abs(layer.weight.d).mean(), rel=1e-4)
    y.forward()
    dqa.deploy(tmp_path / "d.nnp", {"x": x}, {"y": y})
    deployed = nn.graph_def.load(str(tmp_path / "d.nnp"))(x)
    deployed.forward()
    np.testing.assert_array_equal(deployed.d, y.d)


def test_the_mixing_rule(shown):
    _, _, losses = train([dqa.MinMax(2), dqa.MinMax(4), dqa.MinMax(8)], shown["Fade"]())
    assert losses[-1] < losses[0]
    (layer,) = dqa.find_quantized()
    assert layer.coefficients().tolist() == [1, 0, 0]
    assert layer.attention().tolist() == [1, 0, 0]
