"""Binary-Relax as its authors have it, against float64 numpy of arXiv 1801.06313 and its code."""

from __future__ import annotations

import nnabla as nn
import nnabla.functions as F
import nnabla.solvers as S
import numpy as np
import pytest

import nnabla_dqa as dqa
import nnabla_dqa.parametric_functions as PF
from nnabla_dqa.layers.rules import mixing_rule
from nnabla_dqa.recipes.recipe import Recipe


def binary(y):
    return np.where(y >= 0, 1.0, -1.0) * np.abs(y).mean()


def ternary(y):
    """The published code's: threshold 0.7 E|y|, scale the mean over all weights."""
    kept = np.abs(y) > 0.7 * np.abs(y).mean()
    return np.sign(y) * kept * (np.abs(y) * kept).mean()


def lambda_of(epoch):
    """For epochs counted from 0, multiplied by 1.04 at the start of each, from 1."""
    value = 1.0
    for _ in range(epoch + 1):
        value *= 1.04
    return value


def build(quantizer, rule, shape=(6, 5)):
    x = nn.Variable.from_numpy_array(np.random.RandomState(0).randn(4, shape[0]))
    quantizers = [quantizer, dqa.FullPrecision()]
    y = PF.dqa_affine(x, shape[1], name="fc", quantizers=quantizers, mixing=rule)
    return x, y, dqa.find_quantized()[0]


@pytest.mark.parametrize(("quantizer", "q"), [(dqa.BWN(), binary), (dqa.MeanTernary(), ternary)])
def test_a_training_is_the_published_one(quantizer, q):
    """(lambda Q(y) + y) / (lambda + 1) for 6 epochs, Q(y) for 2; the gradient goes to y."""
    rule = dqa.BinaryRelaxOriginal(rho=1.04)
    x, out, layer = build(quantizer, rule)
    loss = F.sum(F.pow_scalar(out, 2.0))
    solver = dqa.attach(S.Sgd(0.01), rule.default_schedule(steps=16, steps_per_epoch=2))
    solver.set_parameters({"W": layer.weight})
    y = layer.weight.d.astype(np.float64)
    bias = nn.get_parameters()["fc/affine/b"].d.astype(np.float64)
    for step in range(16):
        factor = lambda_of(step // 2)
        w = (factor * q(y) + y) / (factor + 1) if step < 12 else q(y)
        loss.forward()
        np.testing.assert_allclose(out.d, x.d @ w + bias, rtol=1e-4, atol=1e-5)
        solver.zero_grad()
        loss.backward()
        y = y - 0.01 * x.d.T @ (2 * (x.d @ w + bias))
        np.testing.assert_allclose(layer.weight.g * 0.01, layer.weight.d - y, rtol=1e-3, atol=1e-6)
        solver.update()
        y = layer.weight.d.astype(np.float64)


def test_the_schedule_is_that_of_the_published_200_epochs():
    literal = dqa.RelaxSchedule.original(steps=200 * 10, steps_per_epoch=10)
    assert literal.soft_steps == 1500
    assert literal.state(1)["omega"] == pytest.approx(1.04)
    assert literal.state(1500)["omega"] == pytest.approx(359, rel=1e-3)
    default = dqa.BinaryRelaxOriginal().default_schedule(2000, 10, hard_fraction=0.25)
    for b in (1, 10, 11, 700, 1500):
        assert default.state(b)["omega"] == pytest.approx(literal.state(b)["omega"], rel=1e-9)


def test_a_short_training_sees_all_of_the_relaxation():
    short = dqa.BinaryRelaxOriginal().default_schedule(40, 10, hard_fraction=0.25)
    assert [short.state(b)["omega"] for b in (1, 30)] == pytest.approx([1.04, 1.04**150])
    literal = dqa.BinaryRelaxOriginal(rho=1.04).default_schedule(40, 10, hard_fraction=0.25)
    assert literal.state(30)["omega"] == pytest.approx(1.04**3)


@pytest.mark.parametrize("axis", [None, 0])
def test_mean_ternary_equals_its_equation(axis):
    w = np.random.RandomState(1).randn(7, 30).astype(np.float32)
    exact = w.astype(np.float64)
    expected = ternary(exact) if axis is None else np.stack([ternary(row) for row in exact])
    quantizer = dqa.MeanTernary(channel_axis=axis)
    np.testing.assert_allclose(quantizer.quantize(w), expected, rtol=1e-5, atol=1e-7)
    assert quantizer.levels == 3
    assert not dqa.MeanTernary().quantize(np.zeros((2, 3))).any()


def test_names_at_the_command_line_and_in_recipes():
    for name in ("binary-relax-original", "BinaryRelaxOriginal", "binary_relax_original"):
        assert mixing_rule(name) == dqa.BinaryRelaxOriginal()
    assert mixing_rule("binary-relax-original:rho=1.04") == dqa.BinaryRelaxOriginal(rho=1.04)
    recipe = Recipe.from_mapping(
        {
            "data": "d",
            "model": {"name": "resnet8_32"},
            "quantizers": "meanternary/float",
            "mixing": "binary-relax-original",
            "hard_fraction": 0.25,
        }
    )
    assert recipe.method == "Binary-Relax (original)"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: dqa.BinaryRelaxOriginal(rho=0.5), "rho=0.5 is neither None nor from 1 on"),
        (
            lambda: dqa.make_mixture(dqa.BWN(), dqa.TWN(), mixing=dqa.BinaryRelaxOriginal()),
            r"as in bwn/float; got BWN\(.*\), TWN\(.*\)",
        ),
    ],
)
def test_wrong_arguments_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()
