"""Nets with quantized activations in half contexts, recorded, saved by NNabla and loaded again."""

from __future__ import annotations

import nnabla as nn
import nnabla.functions as F
import nnabla.solvers as S
import numpy as np
import pytest
from nnabla.utils.save import save

import nnabla_dqa as dqa
from nnabla_dqa._util.devices import in_float32
from nnabla_dqa.nnp_format.archive import Archive
from tests.layers.test_activations import LSQ, MINMAX, PACT, STEPS, Net, data, entering, model

HALF = nn.Context(["cpu:half", "cpu:float"], "CpuCachedArray", "0")
FLOAT = nn.Context(["cpu:float"], "CpuCachedArray", "0")
KINDS = {
    "EMAMinMax": MINMAX,
    "EMAMinMax alone": MINMAX[:1],
    "PACT": PACT,
    "PACT alone": PACT[:1],
    "LSQ": LSQ,
    "LSQ alone": (dqa.LSQ(3),),
    "LSQ with an offset": tuple(dqa.LSQ(bits, offset=True) for bits in (2, 4, 8)),
    "sign alone": (dqa.Sign(),),
    "sign": (dqa.Sign(), dqa.EMAMinMax(2), dqa.PACT(4), dqa.LSQ(8)),
}
pytestmark = [
    pytest.mark.filterwarnings("ignore::nnabla_dqa.layers.tensors.AttentionWarning"),
    pytest.mark.parametrize("kind", KINDS),
]
contexts = pytest.mark.parametrize("context", [FLOAT, HALF], ids=["float", "half"])


def parameters():
    return {name: v.d.copy() for name, v in nn.get_parameters(grad_only=False).items()}


def new(kind, context=FLOAT):
    """A net whose loss and solver are in float32, as those of a training are."""
    net = Net.__new__(Net)
    with nn.context_scope(context):
        net.x = nn.Variable.from_numpy_array(data())
        net.y = model(net.x, KINDS[kind])
        with dqa.hard():
            net.hard = model(net.x, KINDS[kind])
        with in_float32():
            net.loss = F.mean(F.pow_scalar(F.add_scalar(net.y, -1.0), 2.0))
            schedule = dqa.TemperatureSchedule(STEPS, hard_fraction=0.5)
            net.solver = dqa.attach(S.Sgd(0.05), schedule)
            net.solver.set_parameters(nn.get_parameters())
    return net


def assert_same(found, expected):
    assert found.keys() == expected.keys()
    for name in expected:
        np.testing.assert_array_equal(found[name], expected[name], err_msg=name)


@contexts
@pytest.mark.parametrize("extension", ["h5", "protobuf"])
@pytest.mark.parametrize("steps", [0, 3, 6])
def test_parameters_saved_and_loaded_train_on_to_the_bit(kind, context, extension, steps, tmp_path):
    """Before the first update, while quantizers are mixed, and in the hard phase."""

    def run(resume):
        nn.clear_parameters()
        net = new(kind, context)
        for i in range(STEPS):
            if resume and i == steps:
                nn.save_parameters(str(tmp_path / f"p.{extension}"))
                nn.clear_parameters()
                nn.load_parameters(str(tmp_path / f"p.{extension}"))
                net = new(kind, context)
            net.step()
        return parameters()

    assert_same(run(True), run(False))


@contexts
def test_a_training_ends_hard_on_the_levels_of_one_quantizer(kind, context):
    net = new(kind, context)
    for _ in range(STEPS):
        net.step()
    net.y.forward()
    net.hard.forward()
    assert np.isfinite(np.asarray(net.y.d)).all()
    np.testing.assert_array_equal(net.y.d, net.hard.d)
    assert net.layer.is_hard
    x = entering(net.hard)
    x.parent.inputs[0].persistent = True
    net.hard.forward()
    assert np.unique(x.d).size <= 2 ** KINDS[kind][0].bits
    for name, v in nn.get_parameters(grad_only=False).items():
        assert v.data.dtype == np.float32, name
        assert np.isfinite(v.d).all(), name


def test_a_half_net_is_near_the_float_one(kind):
    """Ranges, clips and steps of the first mini-batch are those of half precision's numbers."""
    found = []
    for context in (FLOAT, HALF):
        nn.clear_parameters()
        net = new(kind, context)
        net.step()
        found.append({path: v.d.copy() for path, v in net.layer.state.items()})
    for path, array in found[0].items():
        np.testing.assert_allclose(found[1][path], array, rtol=5e-2, atol=5e-2, err_msg=path)


def gradients(y, found=None):
    """The output, and gradients of all parameters: what running ranges are told too."""
    found = found or nn.get_parameters(grad_only=False)
    for v in found.values():
        v.grad.zero()
    y.forward()
    y.backward(1.0)
    return y.d.copy(), {name: v.g.copy() for name, v in found.items()}


def assert_near(found, expected):
    np.testing.assert_allclose(found[0], expected[0], rtol=1e-5, atol=1e-5)
    for name, gradient in expected[1].items():
        # The portable graph tells first values again and again; they are kept from the first time.
        # What no solver trains has a gradient in a file, which holds no need_grad.
        if name.endswith(("W", "b", "alpha", "range", "clip", "step", "offset")):
            size = max(1.0, np.abs(gradient).max())
            np.testing.assert_allclose(found[1][name], gradient, 1e-4, 1e-4 * size, err_msg=name)


@pytest.mark.parametrize("steps", [0, 2, STEPS])
@pytest.mark.parametrize("suffix", [".nnp", ".h5"])
def test_nnablas_own_save_writes_the_training_graph(kind, steps, suffix, tmp_path):
    """It loads in any NNabla, with the outputs and the gradients."""
    net = new(kind)
    for _ in range(steps):
        net.step()
    expected = gradients(net.y)
    contents = {
        "networks": [
            {"name": "net", "batch_size": 8, "outputs": {"y": net.y}, "names": {"x": net.x}}
        ],
        "executors": [{"name": "runtime", "network": "net", "data": ["x"], "output": ["y"]}],
    }
    path = tmp_path / "net.nnp"
    save(str(path), contents, include_params=True, variable_batch_size=False)
    if suffix == ".h5":
        nn.save_parameters(str(tmp_path / "net.h5"))
        nn.clear_parameters()
        nn.load_parameters(str(tmp_path / "net.h5"))
        assert_near(gradients(model(net.x, KINDS[kind])), expected)
        return
    nn.clear_parameters()
    functions = Archive.read(path).definition.network[0].function
    assert not any(f.type.startswith(("DQA", "Callback")) for f in functions)
    graph = nn.graph_def.load(str(path))
    y = graph(net.x)
    assert_near(gradients(y, graph.get_parameters(grad_only=False)), expected)


@pytest.mark.parametrize("steps", [0, 2, STEPS])
def test_a_recorded_definition_computes_the_same_and_trains(kind, steps):
    net = new(kind)
    for _ in range(steps):
        net.step()
    with nn.graph_def.graph() as g:
        model(nn.ProtoVariable(net.x.shape), KINDS[kind])
    y = g(net.x)
    assert isinstance(y, nn.Variable)
    assert_near(gradients(y), gradients(net.y))
    before = parameters()
    loss = F.mean(F.pow_scalar(F.add_scalar(y, -1.0), 2.0))
    schedule = dqa.TemperatureSchedule(STEPS, hard_fraction=0.5)
    solver = dqa.attach(S.Sgd(0.05), schedule, restart=steps == STEPS)
    solver.set_parameters(nn.get_parameters())
    for _ in range(2):
        loss.forward()
        solver.zero_grad()
        loss.backward()
        solver.update()
    moved = {name for name, array in parameters().items() if np.any(array != before[name])}
    assert "b/affine/W" in moved
    target = type(KINDS[kind][0]).__name__
    if target != "Sign" and steps < STEPS:
        end = {"EMAMinMax": "range", "PACT": "clip", "LSQ": "step"}[target]
        assert any("/activation/" in name and name.endswith(end) for name in moved)
