"""Layers of a live graph that read one tensor: each has quantizers of its own.

In files they share them (tests/nnp).
"""

from __future__ import annotations

import nnabla as nn
import nnabla.functions as F
import nnabla.parametric_functions as NPF
import numpy as np
import pytest

import nnabla_dqa as dqa
from nnabla_dqa.backends.fused_activations import NAME
from nnabla_dqa.onednn import library

quiet = pytest.mark.filterwarnings("ignore::nnabla_dqa.layers.tensors.AttentionWarning")
PLAIN = dqa.Attention(normalize="none")
RULES = dqa.Rules("minmax:2", activations="pact:2")


def block(x, train=True, apart=False):
    """A stem, and a block whose first convolution and shortcut read the stem.

    ``apart``: the shortcut reads a copy of it.
    """
    h = F.relu(NPF.convolution(x, 4, (3, 3), pad=(1, 1), name="stem"))
    a = NPF.convolution(h, 6, (3, 3), pad=(1, 1), stride=(2, 2), name="conv1")
    copy = F.identity(h) if apart else h
    b = NPF.convolution(copy, 6, (1, 1), stride=(2, 2), name="shortcut")
    h = F.relu(F.add2(NPF.batch_normalization(a, batch_stat=train, name="bn"), b))
    return NPF.affine(h, 3, name="fc")


def built(rules=RULES, make=block):
    nn.clear_parameters()
    nn.random.prng.seed(3)
    x = nn.Variable.from_numpy_array(images())
    with nn.auto_forward(False):
        train = dqa.convert(make(x), rules)
        with dqa.hard():
            evaluated = dqa.convert(make(x, train=False), rules)
    return x, train, evaluated


def images(seed=0, count=4):
    return np.random.RandomState(seed).rand(count, 1, 8, 8).astype(np.float32)


def train(y, steps=8):
    solver = dqa.attach(
        nn.solvers.Momentum(0.05), dqa.TemperatureSchedule(steps, hard_fraction=0.5)
    )
    solver.set_parameters(nn.get_parameters())
    loss = F.mean(F.pow_scalar(F.add_scalar(y, -1.0), 2.0))
    for _ in range(steps):
        loss.forward(clear_no_need_grad=True)
        solver.zero_grad()
        loss.backward(clear_buffer=True)
        solver.update()


def entering():
    return [t.name for t in dqa.find_quantized() if not t.is_weight]


def count(y):
    found = []
    y.visit(lambda f: found.append(f.info.type_name))
    return found.count(NAME)


@pytest.mark.parametrize(
    "rule",
    [
        dqa.Rule("shortcut*", "minmax:2", activations="pact:4"),
        dqa.Rule("shortcut*", "minmax:2", activations="emaminmax:2"),
        dqa.Rule("shortcut*", "minmax:2", activations="float"),
    ],
)
def test_layers_that_want_something_else_have_their_own(rule):
    built(dqa.Rules("minmax:2", [rule], activations="pact:2"))
    own = [] if rule.activations.quantizers[0].is_float else ["shortcut/conv:input"]
    assert entering() == ["conv1/conv:input", *own, "fc/affine:input"]


def test_a_layer_that_reads_something_else_too_has_its_own():
    def make(x, train=True):
        h = F.relu(NPF.affine(x, 5, name="stem"))
        a = NPF.affine(h, 5, name="a")
        b = NPF.affine(h, 5, name="b")
        b = NPF.affine(F.relu(b), 5, name="b")
        return NPF.affine(F.add2(a, b), 3, name="fc")

    built(make=make)
    assert entering() == ["a/affine:input", "b/affine:input", "fc/affine:input"]


def test_layers_of_which_one_is_frozen_have_their_own():
    def make(x, train=True):
        h = F.relu(NPF.affine(x, 5, name="stem"))
        a = NPF.affine(h, 5, name="a", fix_parameters=True)
        return F.add2(a, NPF.affine(h, 5, name="b"))

    built(make=make)
    assert entering() == ["a/affine:input", "b/affine:input"]
    assert not nn.get_parameters(grad_only=False)["a/affine/dqa/activation/pact/clip"].need_grad


@quiet
def test_layers_on_onednn_compute_the_same():
    found = []
    for layers in ("nnabla", "onednn"):
        _, y, _ = built(dqa.Rules("minmax:2", activations="pact:2,4,8"))
        loss = F.mean(F.mul2(y, y))
        if layers == "onednn":
            if library.why_not():
                pytest.skip(library.why_not())
            assert dqa.accelerate(loss).reason == ""
        for v in nn.get_parameters().values():
            v.grad.zero()
        loss.forward()
        loss.backward()
        found.append({name: v.g.copy() for name, v in nn.get_parameters().items()})
    assert found[0].keys() == found[1].keys()
    for name, gradient in found[0].items():
        size = max(0.1, np.abs(gradient).max())
        np.testing.assert_allclose(found[1][name], gradient, 1e-3, 1e-4 * size, err_msg=name)


def branches(x):
    h = F.relu(NPF.convolution(x, 4, (3, 3), name="a"))
    return [NPF.convolution(h, 4, (3, 3), name=name) for name in ("b1", "b2")]


@quiet
def test_a_branch_alone_computes_what_it_computes_in_the_whole_graph(tmp_path):
    nn.clear_parameters()
    rules = dqa.Rules("minmax:2,4", activations="pact:2,4", mixing=PLAIN)
    x = nn.Variable.from_numpy_array(images())
    with nn.auto_forward(False):
        both = dqa.convert(branches(x), rules)
        train(F.add2(*both))
        with dqa.hard():
            _, expected = dqa.convert(branches(x), rules)
            alone = dqa.convert(branches(x)[1], rules)
    nn.forward_all([expected, alone])
    np.testing.assert_array_equal(alone.d, expected.d)
    result = dqa.deploy(tmp_path / "d.nnp", {"x": x}, {"y": both[1]})
    assert [row.name for row in result.activations] == ["b2/conv/input"]
    deployed = nn.graph_def.load(str(tmp_path / "d.nnp"))(x)
    deployed.forward()
    np.testing.assert_array_equal(deployed.d, expected.d)
