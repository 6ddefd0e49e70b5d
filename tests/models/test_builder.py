"""A model is the same net whatever its layers are: float, plain quantized, DQA, channel last."""

from __future__ import annotations

import nnabla as nn
import nnabla.functions as F
import nnabla.parametric_functions as NPF
import numpy as np
import pytest

import nnabla_dqa as dqa
from nnabla_dqa.layers.tensors import Mixture
from nnabla_dqa.models import MODELS, build
from tests.models.nets import functions, images, multiplications

pytestmark = pytest.mark.slow

DQA = dqa.make_mixture(dqa.MinMax(2), dqa.MinMax(4), dqa.FullPrecision())
MIXTURES = {
    "float": None,
    "plain": dqa.make_mixture(dqa.MinMax(2)),
    "dqa": DQA,
    "relax": Mixture((dqa.BWN(), dqa.FullPrecision()), dqa.BinaryRelax()),
}
SMALL = ("resnet8_32", "resnet18_32", "resnet18_224", "mobilenetv2_32", "mobilenetv2_224")
"""One of each kind."""
STATISTICS = ("beta", "gamma", "mean", "var")
BLOCKS = (1, 2, 3, 4, 3, 3, 1)
"""Of MobileNetV2, by stage."""


def weights(grad_only=False):
    """Parameters but those of the mixtures."""
    return {k: v for k, v in nn.get_parameters(grad_only=grad_only).items() if "/dqa/" not in k}


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("kind", ["plain", "dqa"])
def test_all_convolutions_and_affine_layers_are_quantized(name, kind):
    y = build(name, nn.Variable((2, 3, 16, 16)), 5, True, MIXTURES[kind], width=0.1)
    uses = [f for f in functions(y) if f.info.type_name == "Convolution"]
    layers = dqa.find_quantized()
    assert len(layers) == len(uses) + 1
    assert {layer.mixture for layer in layers} == {MIXTURES[kind]}
    assert all(f.inputs[1].parent is not None for f in uses)
    assert {layer.weight_name for layer in layers} == {k for k in weights() if k.endswith("/W")}


@pytest.mark.parametrize("name", SMALL)
def test_same_names_shapes_and_initial_values_whatever_the_mixture(name):
    found = []
    for mixture in MIXTURES.values():
        nn.clear_parameters()
        rng = np.random.RandomState(5)
        build(name, images(), 4, True, mixture, width=0.05, rng=rng)
        found.append({k: (v.d.copy(), v.need_grad) for k, v in weights().items()})
    for other in found[1:]:
        assert list(other) == list(found[0])
        for key, (value, need_grad) in found[0].items():
            np.testing.assert_array_equal(other[key][0], value)
            assert other[key][1] == need_grad


@pytest.mark.parametrize("name", SMALL)
def test_full_precision_mixture_gives_the_outputs_of_the_float_net_exactly(name, tmp_path):
    x = images()
    y = build(name, x, 4, False, width=0.1)
    y.forward()
    nn.save_parameters(str(tmp_path / "float.h5"))
    nn.clear_parameters()
    mixture = dqa.make_mixture(dqa.FullPrecision())
    build(name, x, 4, True, mixture, width=0.1, rng=np.random.RandomState(9))
    nn.load_parameters(str(tmp_path / "float.h5"))
    z = build(name, x, 4, False, mixture, width=0.1)
    z.forward()
    assert all(layer.mixture == mixture for layer in dqa.find_quantized())
    assert np.ptp(y.d, axis=0).min() > 0
    np.testing.assert_array_equal(z.d, y.d)


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("kind", ["float", "dqa"])
def test_gradient_reaches_every_trainable_parameter(name, kind):
    x = images(4, 32 if name.endswith("_224") else 16)
    y = build(name, x, 4, True, MIXTURES[kind], width=0.1, rng=np.random.RandomState(0))
    t = nn.Variable.from_numpy_array(np.arange(4)[:, None])
    loss = F.mean(F.softmax_cross_entropy(y, t))
    parameters = nn.get_parameters()
    for v in parameters.values():
        v.g = 0
    loss.forward()
    loss.backward()
    assert [k for k, v in parameters.items() if not np.any(v.g)] == []
    assert all(np.isfinite(v.g).all() for v in parameters.values())
    alphas = [k for k in parameters if k.endswith("/dqa/alpha")]
    assert len(alphas) == (len(dqa.find_quantized()) if kind == "dqa" else 0)


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("kind", ["float", "dqa"])
def test_channel_last_builds_the_same_net(name, kind):
    found = []
    for channel_last in (False, True):
        nn.clear_parameters()
        x = images(2, 32, channel_last)
        y = build(name, x, 7, True, MIXTURES[kind], width=0.1, channel_last=channel_last)
        assert y.shape == (2, 7)
        shapes = {}
        for key, v in nn.get_parameters(grad_only=False).items():
            move = not channel_last and len(v.shape) == 4
            shapes[key] = tuple(np.array(v.shape)[[0, 2, 3, 1]]) if move else v.shape
        found.append((shapes, multiplications(y, 2), [f.info.type_name for f in functions(y)]))
    assert found[0] == found[1]


@pytest.mark.parametrize("channel_last", [False, True])
def test_normalization_is_replaced_in_the_scope_of_its_layer(channel_last):
    calls = []

    def normalization(h, train, channel_axis):
        calls.append((train, channel_axis))
        return NPF.batch_normalization(h, axes=[channel_axis], batch_stat=train)

    x = images(channel_last=channel_last)
    options = {"width": 0.1, "channel_last": channel_last}
    build("resnet18_32", x, 4, True, **options)
    names = list(nn.get_parameters(grad_only=False))
    nn.clear_parameters()
    build("resnet18_32", x, 4, True, normalization=normalization, **options)
    assert list(nn.get_parameters(grad_only=False)) == names
    assert calls == [(True, 3 if channel_last else 1)] * 20


@pytest.mark.parametrize("name", SMALL)
def test_train_chooses_batch_statistics_and_dropout(name):
    for train in (True, False):
        y = build(name, images(), 4, train, width=0.1)
        used = functions(y)
        statistics = [f for f in used if f.info.type_name == "BatchNormalization"]
        assert {f.arguments["batch_stat"] for f in statistics} == {train}
        dropouts = sum(f.info.type_name == "Dropout" for f in used)
        assert dropouts == (train and name == "mobilenetv2_224")


def test_initial_weights():
    build("resnet18_32", images(), 10, True, width=0.5, rng=np.random.RandomState(0))
    first = {k: v.d.copy() for k, v in nn.get_parameters().items()}
    w = first["stage4/block2/conv2/conv/W"]
    assert w.std() == pytest.approx(np.sqrt(2 / (256 * 9)), rel=0.01)
    limit = 1 / np.sqrt(256)
    assert 0.95 * limit < np.abs(first["fc/affine/W"]).max() <= limit
    assert not first["fc/affine/b"].any()
    for seed, equal in ((0, True), (1, False)):
        nn.clear_parameters()
        build("resnet18_32", images(), 10, True, width=0.5, rng=np.random.RandomState(seed))
        again = nn.get_parameters()["stem/conv/W"].d
        assert np.array_equal(again, first["stem/conv/W"]) == equal


@pytest.mark.parametrize("name", SMALL)
def test_no_function_without_a_cuda_version(name):
    y = build(name, images(), 4, True, DQA, width=0.1)
    missing = {"GlobalAveragePooling", "Shift", "BroadcastTo", "Constant", "Unique"}
    assert missing.isdisjoint(f.info.type_name for f in functions(y))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["resnet8_32", "resnet18_224", "mobilenetv2_224"])
def test_deployed_file_gives_the_outputs_of_the_hard_net_for_any_batch(name, tmp_path):
    x = images(4)
    y = build(name, x, 4, False, DQA, width=0.1)
    with dqa.hard():
        hard = build(name, x, 4, False, DQA, width=0.1)
    hard.forward()
    path = tmp_path / "net.nnp"
    deployment = dqa.deploy(path, {"x": x}, {"y": y}, allow_untrained=True)
    assert len(deployment.layers) == len(dqa.find_quantized())
    for batch in (4, 2):
        inp = nn.Variable.from_numpy_array(x.d[:batch])
        out = nn.graph_def.load(str(path), batch_size=batch)(inp)
        out.forward()
        if batch == 4:
            np.testing.assert_array_equal(out.d, hard.d)
        # Matrix products of other sizes sum in another order.
        np.testing.assert_allclose(out.d, hard.d[:batch], atol=1e-5 * np.abs(hard.d).max())


def test_names_that_checkpoints_have():
    build("resnet8_32", images(), 4, True, DQA, width=0.1)
    blocks = [f"stage{i}/block1/conv{j}" for i in (1, 2, 3) for j in (1, 2)]
    normalized = [f"{name}/bn/{v}" for name in ["stem", *blocks] for v in STATISTICS]
    convolutions = [f"{name}/conv/W" for name in ["stem", *blocks]]
    assert set(weights()) == {*normalized, *convolutions, "fc/affine/W", "fc/affine/b"}
    nn.clear_parameters()
    build("mobilenetv2_32", images(), 4, True)
    found = {key[: -len("/conv/W")] for key in weights() if key.endswith("/conv/W")}
    parts = ["expand", "depthwise", "project"]
    blocks = [f"stage{i + 1}/block{j + 1}" for i, n in enumerate(BLOCKS) for j in range(n)]
    shortcuts = [f"stage{i}/block1/shortcut" for i in (1, 2, 5, 7)]
    assert found == {"stem", "head", *shortcuts, *(f"{b}/{p}" for b in blocks for p in parts)}
