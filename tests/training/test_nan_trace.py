"""Where NaN came from, on graphs made by hand."""

from __future__ import annotations

import nnabla as nn
import nnabla.functions as F
import nnabla.parametric_functions as PF
import numpy as np
import pytest

import nnabla_dqa.parametric_functions as QPF
from nnabla_dqa.quantization import MinMax
from nnabla_dqa.training.nan_trace import first_non_finite


def network(x, convolution=PF.convolution):
    h = convolution(x, 4, (3, 3), name="a")
    h = F.relu(PF.batch_normalization(h, name="n"))
    h = F.add2(h, F.relu(convolution(h, 4, (3, 3), pad=(1, 1), name="b")))
    return PF.affine(h, 3, name="fc")


def graph(convolution=PF.convolution):
    """Input, logits and loss."""
    x = nn.Variable.from_numpy_array(np.random.RandomState(0).randn(2, 3, 6, 6))
    label = nn.Variable.from_numpy_array(np.array([[0], [2]]))
    logits = network(x, convolution)
    return x, logits, F.mean(F.softmax_cross_entropy(logits, label))


def first(loss):
    return first_non_finite(loss, nn.get_parameters(grad_only=False))


def test_nothing_is_wrong():
    assert first(graph()[2]) == "the loss"


def test_the_mini_batch():
    x, _, loss = graph()
    x.data.data[1, 2, 3, 3] = np.nan
    assert first(loss) == "the mini-batch"


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize(
    "name", ["a/conv/W", "a/conv/b", "n/bn/gamma", "n/bn/beta", "b/conv/W", "fc/affine/b"]
)
def test_a_parameter(name, value):
    loss = graph()[2]
    nn.get_parameters()[name].data.data.flat[-1] = value
    assert first(loss) == f"parameter {name}"


def test_the_first_of_two():
    x, _, loss = graph()
    nn.get_parameters()["b/conv/W"].d = np.nan
    nn.get_parameters()["fc/affine/W"].d = np.nan
    assert first(loss) == "parameter b/conv/W"
    x.d = np.inf
    assert first(loss) == "the mini-batch"


@pytest.mark.parametrize("layer", ["b/conv", "fc/affine"])
def test_a_layer_whose_output_overflows(layer):
    """Its parameters are finite, what comes out is not."""
    _, _, loss = graph()
    nn.get_parameters()[f"{layer}/W"].d = 3e38
    assert first(loss) == f"layer {layer}"


def test_a_function_after_a_layer_counts_to_it():
    x = nn.Variable.from_numpy_array(np.ones((2, 4)))
    h = PF.affine(x, 3, name="first")
    nn.get_parameters()["first/affine/W"].d = -1
    loss = F.mean(PF.affine(F.log(h), 2, name="second"))
    assert first(loss) == "layer first/affine"


def test_the_loss_alone():
    """A function without a layer before it goes by its own name."""
    x = nn.Variable.from_numpy_array(np.full((2, 4), -1.0))
    assert first(F.mean(F.log(x))) == "Log"
    logits = nn.Variable.from_numpy_array(np.full((2, 3), 3e38))
    assert first(F.sum(logits)) == "Sum"


def test_a_quantized_layer():
    def convolution(*arguments, **options):
        quantizers = (MinMax(2), MinMax(4), MinMax(8))
        return QPF.dqa_convolution(*arguments, quantizers=quantizers, **options)

    _, _, loss = graph(convolution)
    assert first(loss) == "the loss"
    weights = nn.get_parameters()["b/conv/W"]
    kept = weights.d.copy()
    weights.data.data.flat[0] = np.nan
    assert first(loss) == "parameter b/conv/W"
    weights.d = kept
    alpha = next(n for n in nn.get_parameters(grad_only=False) if n.endswith("a/conv/dqa/alpha"))
    nn.get_parameters(grad_only=False)[alpha].d = np.nan
    assert first(loss) == f"parameter {alpha}"


def test_the_names_are_those_given():
    loss = graph()[2]
    parameters = {f"net/{k}": v for k, v in nn.get_parameters(grad_only=False).items()}
    parameters["net/a/conv/W"].d = np.nan
    assert first_non_finite(loss, parameters) == "parameter net/a/conv/W"


def test_the_state_of_a_layer_is_not_its_name():
    x = nn.Variable.from_numpy_array(np.ones((1,)))
    alpha = nn.Variable.from_numpy_array(np.zeros((1,)))
    loss = F.sum(x / alpha)
    assert first_non_finite(loss, {"a/conv/dqa/alpha": alpha}) == "layer a/conv"
