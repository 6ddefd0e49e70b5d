"""Every layer in a context against the CPU: outputs, gradients, and where its functions run."""

from __future__ import annotations

import nnabla as nn
import nnabla.functions as F
import numpy as np
import pytest

import nnabla_dqa as dqa
import nnabla_dqa.parametric_functions as PF
from tests.gpu.conftest import CPU, get, on_cpu
from tests.gpu.functions import foreign_functions
from tests.test_parametric_functions import CASES, data, pair

RUNNABLE_ON_CPU = [case for case in CASES if "channel last" not in case]
SETS = {
    "minmax": (dqa.MinMax(2), dqa.MinMax(4), dqa.MinMax(8)),
    "sawb": (dqa.SAWB(2), dqa.SAWB(3)),
    "bwn": (dqa.BWN(), dqa.TWN(), dqa.FullPrecision()),
}


def run(context, case, quantizers, temperature=1.0):
    """Output, gradients of input and parameters, by name; and the graph."""
    nn.clear_parameters()
    _, layer, arguments, options, _, _ = pair(case)
    with nn.context_scope(context):
        x = data(case)
        x.need_grad = case != "embed"
        rng = {} if case == "embed" else {"rng": np.random.RandomState(3)}
        nn.random.prng = np.random.RandomState(3)
        mixing = dqa.Attention(normalize="none")
        y = layer(x, *arguments, **options, **rng, quantizers=quantizers, mixing=mixing)
        for scope in dqa.find_quantized():
            if "temperature" in scope.state:
                scope.state["temperature"].d = temperature
        y.forward()
        parameters = nn.get_parameters()
        for v in (x, *parameters.values()):
            v.grad.zero()
        y.backward(np.random.RandomState(7).randn(*y.shape).astype(np.float32))
        found = {"y": y.d.copy(), **{name: v.g.copy() for name, v in parameters.items()}}
        if x.need_grad:
            found["x"] = x.g.copy()
    return found, y


def assert_close(found, expected, tolerance):
    """Each array by its norm: single numbers near zero may differ by more."""
    assert set(found) == set(expected)
    for name, array in expected.items():
        error = np.linalg.norm(found[name].astype(np.float64) - array)
        assert error <= tolerance * max(np.linalg.norm(array), 1e-6), name


@pytest.mark.parametrize("quantizers", SETS)
@pytest.mark.parametrize("case", RUNNABLE_ON_CPU)
def test_outputs_and_gradients_are_those_of_the_cpu(context, case, quantizers):
    found, y = run(context, case, SETS[quantizers])
    expected, _ = run(CPU, case, SETS[quantizers])
    assert_close(found, expected, 1e-5)
    assert np.any(found[next(name for name in found if name.endswith("alpha"))])
    assert foreign_functions(y, context) == set()


@pytest.mark.parametrize("temperature", [100.0, 1.0, 0.05])
def test_attention_at_several_temperatures(context, temperature):
    found, _ = run(context, "affine", SETS["minmax"], temperature)
    expected, _ = run(CPU, "affine", SETS["minmax"], temperature)
    assert_close(found, expected, 1e-5)


@pytest.mark.gpu
def test_channel_last_is_the_same_layer():
    """Which NNabla's CPU cannot run, so it is compared with the channels first, there."""
    outputs = []
    rng = np.random.RandomState(0)
    w, image = rng.randn(6, 4, 3, 3), rng.randn(2, 4, 7, 7)
    for context, last in ((CPU, False), (get("cudnn"), True)):
        nn.clear_parameters()
        with nn.context_scope(context):
            x = nn.Variable.from_numpy_array(image.transpose(0, 2, 3, 1) if last else image)
            kernel = w.transpose(0, 2, 3, 1) if last else w
            y = PF.dqa_convolution(
                x, 6, (3, 3), channel_last=last, w_init=kernel, quantizers=SETS["minmax"]
            )
            y.forward()
            outputs.append(y.d.transpose(0, 3, 1, 2) if last else y.d.copy())
    np.testing.assert_allclose(outputs[1], outputs[0], rtol=1e-4, atol=1e-5)


def test_penalty(context):
    """Its value and gradients; the layers' alpha are moved off their start."""
    found = []
    for place in (context, CPU):
        nn.clear_parameters()
        with nn.context_scope(place):
            for name, outputs in (("a", 4), ("b", 5)):
                PF.dqa_affine(nn.Variable((2, 8)), outputs, name=name, quantizers=SETS["minmax"])
            loss = dqa.regularizer(3.0, weighting="none")
            alphas = {k: v for k, v in nn.get_parameters().items() if k.endswith("alpha")}
            for i, v in enumerate(alphas.values()):
                v.d = [0.1 + i, 0.3, 0.2]
                v.grad.zero()
            for layer in dqa.find_quantized():
                layer.state["temperature"].d = 1.0
            loss.forward()
            loss.backward()
            found.append({"loss": loss.d.copy(), **{k: v.g.copy() for k, v in alphas.items()}})
            assert foreign_functions(loss, place) == set()
    assert_close(*found, 1e-5)


def test_hard_end_uses_one_quantizer(context):
    """The hard graph's weights have four values; those of the CPU up to rounding."""
    rng = np.random.RandomState(0)
    x = nn.Variable.from_numpy_array(rng.randn(4, 30).astype(np.float32))
    with nn.context_scope(context):
        soft = PF.dqa_affine(x, 20, name="a", rng=rng, quantizers=SETS["minmax"])
        with dqa.hard():
            hard = PF.dqa_affine(x, 20, name="a", quantizers=SETS["minmax"])
        (layer,) = dqa.find_quantized()
        layer.state["hard"].d = [1, 0, 0]
        F.sink(soft, hard).forward()
        weights = [y.parent.inputs[1].d.copy() for y in (soft, hard)]
    expected = dqa.MinMax(2).quantize(layer.weight.d)
    for w in weights:
        assert len(np.unique(w)) == 4
        np.testing.assert_allclose(w, expected, rtol=1e-6, atol=1e-7)
    if on_cpu(context):
        np.testing.assert_array_equal(weights[1], expected)
