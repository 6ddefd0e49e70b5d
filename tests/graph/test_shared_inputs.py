"""A tensor that several layers read is quantized once, with one state, where they want the same."""

from __future__ import annotations

import functools

import nnabla as nn
import nnabla.functions as F
import nnabla.parametric_functions as NPF
import numpy as np
import pytest

import nnabla_dqa as dqa
from nnabla_dqa.backends.fused_activations import NAME
from nnabla_dqa.models import build
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


def test_it_is_named_after_the_first_layer_and_computed_once():
    _, y, evaluated = built()
    assert entering() == ["conv1/conv:input", "fc/affine:input"]
    inputs = {}
    y.visit(lambda f: inputs.setdefault(f.info.type_name, []).append(f.inputs[0]))
    _, first, shortcut = inputs["Convolution"]
    assert first == shortcut
    assert count(y) in (0, 2)
    assert count(evaluated) == count(y)


@pytest.mark.parametrize("notation", ["pact:2", "pact:2,4,8"])
def test_the_gradient_is_the_sum_of_those_of_each_layer(notation):
    found, loss = {}, {}
    for name in ("shared", "apart"):
        make = block if name == "shared" else functools.partial(block, apart=True)
        _, y, _ = built(dqa.Rules("minmax:2", activations=notation), make)
        parameters = nn.get_parameters()
        for path, v in parameters.items():
            v.grad.zero()
            if path.endswith("clip"):
                v.d = 0.5
        y.forward()
        y.backward(1.0)
        loss[name], found[name] = y.d.copy(), {path: v.g for path, v in parameters.items()}
    np.testing.assert_array_equal(loss["shared"], loss["apart"])
    clip = "dqa/activation/pact/clip"
    assert f"shortcut/conv/{clip}" not in found["shared"]
    total = sum(found["apart"][f"{name}/conv/{clip}"] for name in ("conv1", "shortcut"))
    np.testing.assert_allclose(found["shared"][f"conv1/conv/{clip}"], total, rtol=1e-5)
    for path in ("stem/conv/W", "conv1/conv/W", "fc/affine/W"):
        np.testing.assert_allclose(found["shared"][path], found["apart"][path], 1e-4, 1e-6)


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
@pytest.mark.parametrize("notation", ["pact:2,3", "emaminmax:2,4,8", "lsq:2,4,8,signed=false"])
@pytest.mark.parametrize("hard", [True, False])
def test_what_is_deployed_equals_the_hard_graph(notation, hard, tmp_path):
    rules = dqa.Rules("minmax:2", activations=notation, mixing=PLAIN)
    x, y, evaluated = built(rules)
    train(y)
    graph = evaluated
    if not hard:
        graph = dqa.convert(
            block(x, train=False), dqa.Rules("minmax:2", activations=notation, mixing=PLAIN)
        )
    result = dqa.deploy(tmp_path / "d.nnp", {"x": x}, {"y": graph})
    assert [row.name for row in result.activations] == ["conv1/conv/input", "fc/affine/input"]
    evaluated.forward()
    deployed = nn.graph_def.load(str(tmp_path / "d.nnp"))(x)
    deployed.forward()
    np.testing.assert_array_equal(deployed.d, evaluated.d)
    found = dqa.check_activations(tmp_path / "d.nnp", {"x": images(1)})
    assert found.ok
    rows = {row.layer: row for row in dqa.summarize(tmp_path / "d.nnp").layers}
    assert rows["shortcut/conv"].activation_bits == 2
    assert rows["shortcut/conv"].input_of == "conv1/conv"
    assert rows["conv1/conv"].input_of == ""
    assert rows["stem/conv"].activations == ()


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


def test_models_of_the_package_share_what_enters_a_block_and_its_shortcut():
    x = nn.Variable((1, 3, 32, 32))
    with nn.auto_forward(False):
        y = build("resnet18_32", F.mul_scalar(x, 1.0), 10, True, width=0.0625)
        dqa.convert(y, dqa.Rules("minmax:2", activations="pact:2"))
    names = {t.name for t in dqa.find_quantized() if not t.is_weight}
    shortcuts = [n for n in nn.get_parameters(grad_only=False) if n.endswith("shortcut/conv/W")]
    assert shortcuts
    for name in shortcuts:
        assert name.replace("/W", ":input") not in names
        assert name.replace("shortcut/conv/W", "conv1/conv:input") in names
