"""Mixtures of activations within the parts on oneDNN."""

from __future__ import annotations

import nnabla as nn
import nnabla.functions as F
import nnabla.parametric_functions as NPF
import nnabla.solvers as S
import numpy as np
import pytest
from nnabla.utils.nnp_graph import NnpLoader
from nnabla.utils.save import save

import nnabla_dqa as dqa
import nnabla_dqa.parametric_functions as PF
from nnabla_dqa.layers.scopes import make_mixture
from nnabla_dqa.models import build
from nnabla_dqa.onednn import library
from nnabla_dqa.onednn.accelerate import accelerate, fast
from nnabla_dqa.onednn.function import NAME, part_function
from tests.onednn.test_accelerate import assert_close, types_of

pytestmark = [
    pytest.mark.skipif(bool(library.why_not()), reason=library.why_not()),
    pytest.mark.filterwarnings("ignore::nnabla_dqa.layers.tensors.AttentionWarning"),
]

WEIGHTS = (dqa.MinMax(2), dqa.MinMax(4), dqa.MinMax(8))
# Few levels: where rounding moves a number over one of 2^8, all behind it differs.
SETS = {
    "min-max": ((dqa.EMAMinMax(2), dqa.EMAMinMax(3), dqa.EMAMinMax(4)), None),
    "one quantizer": ((dqa.EMAMinMax(2),), None),
    "PACT": ((dqa.PACT(2), dqa.PACT(3), dqa.PACT(4)), None),
    "LSQ": (tuple(dqa.LSQ(bits, signed=False) for bits in (2, 3, 4)), None),
    "LSQ with an offset": ((dqa.LSQ(2, offset=True), dqa.LSQ(3, offset=True)), None),
    "Binary-Relax": ((dqa.EMAMinMax(2), dqa.FullPrecision()), dqa.BinaryRelax()),
    "a rule's graph": (
        (dqa.EMAMinMax(2), dqa.EMAMinMax(3)),
        dqa.Attention(normalize="none"),
    ),
}
VALUES = {"range": [[0.01, 2.3, 1]], "clip": [[1.9]], "step": [[0.37]], "offset": [[0.02]]}


def logits(x, activations, mixing):
    weights = (WEIGHTS[0], dqa.FullPrecision()) if mixing else WEIGHTS
    with dqa.quantizers(*weights, activations=activations, mixing=mixing):
        h = PF.dqa_convolution(x, 8, (3, 3), pad=(1, 1), with_bias=False, name="a")
        h = F.relu(NPF.batch_normalization(h, name="a"))
        left = PF.dqa_convolution(h, 8, (3, 3), pad=(1, 1), with_bias=False, name="b")
        h = F.relu(F.add2(NPF.batch_normalization(left, name="b"), h))
        h = F.relu(PF.dqa_convolution(h, 5, (3, 3), stride=(2, 2), name="c"))
        return PF.dqa_affine(F.max_pooling(h, (2, 2)), 4, name="d")


def small_net(activations, mixing=None):
    """Loss, logits and image of a net with a residual connection."""
    nn.clear_parameters()
    nn.random.prng = np.random.RandomState(0)
    x, t = nn.Variable((6, 3, 9, 9)), nn.Variable((6, 1))
    rng = np.random.RandomState(1)
    x.d, t.d = rng.randn(*x.shape), rng.randint(0, 4, t.shape)
    y = logits(x, activations, mixing)
    loss = F.add2(F.mean(F.softmax_cross_entropy(y, t)), dqa.regularizer(3.0))
    for layer in dqa.find_quantized():
        for path, v in layer.state.items():
            v.d = VALUES.get(path.rpartition("/")[2], v.d)
    return loss, y, x


def gradients(loss):
    """Also what running arrays are told."""
    parameters = {k: v for k, v in nn.get_parameters(grad_only=False).items() if observed(k, v)}
    for v in parameters.values():
        v.grad.zero()
    loss.forward(clear_no_need_grad=True)
    loss.backward(clear_buffer=True)
    return float(loss.d), {name: v.g.copy() for name, v in parameters.items()}


def observed(path, v):
    return v.need_grad or path.endswith(("range", "first"))


@pytest.mark.parametrize("name", SETS)
def test_a_net_is_one_part_and_agrees_with_nnabla(name):
    expected = gradients(small_net(*SETS[name])[0])
    loss = small_net(*SETS[name])[0]
    assert accelerate(loss).parts == 1
    types = types_of(loss)
    assert types.count(NAME) == 1
    assert not {"Convolution", "DQAActivations"} & set(types)
    assert_close(gradients(loss), expected)


@pytest.mark.parametrize("name", ["min-max", "PACT", "LSQ"])
def test_what_the_portable_graph_gives(name):
    with dqa.backend("portable"):
        expected = gradients(small_net(*SETS[name])[0])
    loss = small_net(*SETS[name])[0]
    accelerate(loss)
    assert_close(gradients(loss), expected)


def halves(x):
    """Two ways from an image, which NNabla puts together."""
    left = F.relu(PF.dqa_convolution(x, 4, (3, 3), pad=(1, 1), name="left"))
    right = F.relu(PF.dqa_convolution(x, 4, (1, 1), name="right"))
    return PF.dqa_affine(F.concatenate(left, right, axis=1), 4, name="d")


def encoders(x):
    """Two images through one encoder."""
    found = [F.relu(PF.dqa_affine(x * sign, 6, name="e")) for sign in (1.0, -0.5)]
    return PF.dqa_affine(F.concatenate(*found, axis=1), 4, name="d")


def between(x):
    """A function that has no layer, in the middle."""
    h = F.relu(PF.dqa_convolution(x, 4, (3, 3), name="c"))
    return PF.dqa_affine(F.sin(h), 4, name="d")


@pytest.mark.parametrize("net", [halves, encoders, between])
@pytest.mark.parametrize("name", ["min-max", "PACT"])
@pytest.mark.parametrize("kept", [False, True], ids=["", "persistent"])
def test_the_penalty_of_a_net_that_is_several_parts(net, name, kept):
    """The table of all coefficients has rows of each part."""
    found = []
    for onednn in (False, True):
        nn.clear_parameters()
        nn.random.prng = np.random.RandomState(0)
        x, t = nn.Variable((6, 3, 9, 9)), nn.Variable((6, 1))
        rng = np.random.RandomState(1)
        x.d, t.d = rng.randn(*x.shape), rng.randint(0, 4, t.shape)
        with dqa.quantizers(*WEIGHTS, activations=SETS[name][0]):
            y = net(F.relu(x))
        penalty = dqa.regularizer(500.0)
        penalty.persistent = kept
        loss = F.add2(F.mean(F.softmax_cross_entropy(y, t)), penalty)
        for layer in dqa.find_quantized():
            for path, v in layer.state.items():
                v.d = VALUES.get(path.rpartition("/")[2], v.d)
        if onednn:
            assert accelerate(loss).parts > 1
        found.append(gradients(loss))
        assert penalty.d > 1 or not kept
    alphas = [name for name in found[0][1] if name.endswith("alpha")]
    assert len(alphas) == len(dqa.find_quantized())
    assert all(np.abs(found[0][1][name]).max() > 1e-3 for name in alphas)
    assert_close(found[1], found[0])


@pytest.mark.parametrize("name", ["min-max", "PACT", "LSQ"])
def test_a_layer_that_nothing_uses_has_its_penalty(name):
    """And nothing holds what it computes."""

    def net(x):
        h = F.relu(PF.dqa_convolution(x, 4, (3, 3), name="a"))
        PF.dqa_convolution(h, 4, (3, 3), name="unused")
        return PF.dqa_affine(h, 4, name="d")

    found = []
    for onednn in (False, True):
        nn.clear_parameters()
        nn.random.prng = np.random.RandomState(0)
        x = nn.Variable.from_numpy_array(np.random.RandomState(1).randn(6, 3, 9, 9))
        with dqa.quantizers(*WEIGHTS, activations=SETS[name][0]):
            y = net(x)
        loss = F.mean(y**2) + dqa.regularizer(500.0)
        for layer in dqa.find_quantized():
            for path, v in layer.state.items():
                v.d = VALUES.get(path.rpartition("/")[2], v.d)
        if onednn:
            accelerate(loss)
        found.append(gradients(loss))
    for alpha in ("unused/conv/dqa/alpha", "unused/conv/dqa/activation/alpha"):
        assert np.abs(found[0][1][alpha]).max() > 1e-3
    assert_close(found[1], found[0])


def test_updates_are_those_of_nnabla():
    """Several, through the first values, with attention and the hard phase."""
    found = []
    for onednn in (False, True):
        loss, _, _ = small_net(*SETS["min-max"])
        if onednn:
            accelerate(loss)
        solver = dqa.attach(S.Sgd(1e-3), dqa.TemperatureSchedule(6, hard_fraction=0.5))
        solver.set_parameters(nn.get_parameters())
        for _ in range(6):
            loss.forward(clear_no_need_grad=True)
            solver.zero_grad()
            loss.backward(clear_buffer=True)
            solver.update()
        found.append({k: v.d.copy() for k, v in nn.get_parameters(grad_only=False).items()})
    for name, array in found[0].items():
        np.testing.assert_allclose(found[1][name], array, rtol=2e-3, atol=2e-4, err_msg=name)


def test_threads_change_no_bit(monkeypatch):
    found = []
    for threads in ("1", "2", "5"):
        monkeypatch.setenv("NNABLA_DQA_THREADS", threads)
        loss = small_net(*SETS["PACT"])[0]
        accelerate(loss)
        found.append([gradients(loss) for _ in range(2)])
    for other in found[1:]:
        for (loss, arrays), (other_loss, other_arrays) in zip(found[0], other):
            assert loss == other_loss
            for name, array in arrays.items():
                np.testing.assert_array_equal(other_arrays[name], array, err_msg=name)


def model_bytes(activations):
    nn.clear_parameters()
    x, t = nn.Variable((8, 3, 32, 32)), nn.Variable((8, 1))
    with dqa.quantizers(dqa.MinMax(2), activations=activations):
        y = build("resnet20_32", x, 10, True, make_mixture(*WEIGHTS), 0.5)
    loss = F.mean(F.softmax_cross_entropy(y, t))
    assert accelerate(loss).parts == 1
    parts = []
    loss.visit(lambda f: parts.append(part_function(f)))
    return sum(part.bytes for part in parts if part is not None)


def test_quantized_activations_are_computed_again_and_not_kept():
    assert model_bytes(SETS["min-max"][0]) < 1.1 * model_bytes(())


def test_evaluation_is_that_of_nnabla():
    _, _, x = small_net(*SETS["min-max"])
    with dqa.hard():
        y = logits(x, SETS["min-max"][0], None)
    (quick,) = fast([y], trains=False)
    y.forward()
    expected = y.d.copy()
    quick.forward()
    np.testing.assert_allclose(quick.d, expected, rtol=1e-4, atol=1e-5)


def test_the_saved_graph_is_nnablas(tmp_path):
    loss, y, x = small_net(*SETS["PACT"])
    accelerate(loss, keep=[y])
    gradients(loss)
    contents = {
        "networks": [{"name": "n", "batch_size": 6, "outputs": {"y": y}, "names": {"x": x}}],
        "executors": [{"name": "e", "network": "n", "data": ["x"], "output": ["y"]}],
    }
    save(str(tmp_path / "n.nnp"), contents, variable_batch_size=False)
    loss.forward()
    expected = y.d.copy()
    network = NnpLoader(str(tmp_path / "n.nnp")).get_network("n")
    network.inputs["x"].d = x.d
    network.outputs["y"].forward()
    np.testing.assert_allclose(network.outputs["y"].d, expected, rtol=1e-4, atol=1e-5)
