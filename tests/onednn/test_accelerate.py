"""Whole graphs on oneDNN."""

from __future__ import annotations

import zipfile

import nnabla as nn
import nnabla.functions as F
import nnabla.parametric_functions as NPF
import numpy as np
import pytest
from nnabla.function import PythonFunction
from nnabla.utils.nnp_graph import NnpLoader
from nnabla.utils.save import save

import nnabla_dqa as dqa
import nnabla_dqa.parametric_functions as PF
from nnabla_dqa.backends.fused import NAME as MIXTURE
from nnabla_dqa.models import build
from nnabla_dqa.onednn import library
from nnabla_dqa.onednn.accelerate import accelerate, fast, layers_by
from nnabla_dqa.onednn.function import NAME

pytestmark = [
    pytest.mark.skipif(bool(library.why_not()), reason=library.why_not()),
    pytest.mark.filterwarnings("ignore::nnabla_dqa.layers.tensors.AttentionWarning"),
]

SETS = {
    "one quantizer": ((dqa.MinMax(2),), None),
    "min-max": ((dqa.MinMax(2), dqa.MinMax(4), dqa.MinMax(8)), None),
    "by channel": ((dqa.SAWB(2, channel_axis=0), dqa.FullPrecision()), None),
    "binary": ((dqa.BWN(), dqa.TWN(), dqa.FullPrecision()), None),
    "Binary-Relax": ((dqa.MinMax(2), dqa.FullPrecision()), dqa.BinaryRelax()),
    "a rule's graph": ((dqa.MinMax(2), dqa.MinMax(4)), dqa.Attention(normalize="none")),
}


def types_of(*outputs):
    found = []
    for output in outputs:
        output.visit(lambda f: found.append(f.info.type_name))
    return found


def small_net(quantizers, mixing, penalty=True, dropout=False):
    """Loss, logits, image and label of a net with a residual connection."""
    nn.clear_parameters()
    nn.random.prng = np.random.RandomState(0)
    x, t = nn.Variable((6, 3, 9, 9)), nn.Variable((6, 1))
    rng = np.random.RandomState(1)
    x.d, t.d = rng.randn(*x.shape), rng.randint(0, 4, t.shape)
    with dqa.quantizers(*quantizers, mixing=mixing):
        h = PF.dqa_convolution(x, 8, (3, 3), pad=(1, 1), with_bias=False, name="a")
        h = F.relu(NPF.batch_normalization(h, name="a"))
        left = PF.dqa_convolution(h, 8, (3, 3), pad=(1, 1), with_bias=False, name="b")
        h = F.relu(F.add2(NPF.batch_normalization(left, name="b"), h))
        h = F.max_pooling(h, (2, 2))
        if dropout:
            h = F.dropout(h, 0.5, seed=5)
        y = PF.dqa_affine(h, 4, name="c")
    loss = F.mean(F.softmax_cross_entropy(y, t))
    if penalty:
        loss = F.add2(loss, dqa.regularizer(3.0))
    return loss, y, x, t


def gradients(loss):
    parameters = nn.get_parameters()
    for v in parameters.values():
        v.grad.zero()
    loss.forward(clear_no_need_grad=True)
    loss.backward(clear_buffer=True)
    return float(loss.d), {name: v.g.copy() for name, v in parameters.items()}


def assert_close(found, expected):
    assert found[0] == pytest.approx(expected[0], rel=1e-5)
    assert found[1].keys() == expected[1].keys()
    for name, array in expected[1].items():
        size = max(np.abs(array).max(), 1e-3)
        np.testing.assert_allclose(found[1][name], array, rtol=0, atol=2e-5 * size, err_msg=name)


@pytest.mark.parametrize("mixtures", ["fused", "portable"])
@pytest.mark.parametrize("name", SETS)
def test_a_net_agrees_with_nnabla(name, mixtures):
    with dqa.backend(mixtures):
        expected = gradients(small_net(*SETS[name])[0])
        loss = small_net(*SETS[name])[0]
    summary = accelerate(loss)
    assert summary.parts == 1
    types = types_of(loss)
    assert types.count(NAME) == 1
    assert not {"Convolution", "BatchNormalization", MIXTURE} & set(types)
    assert_close(gradients(loss), expected)


@pytest.mark.parametrize("normalized", [True, False])
def test_the_penalty_does_not_bring_the_evaluation_graph_along(normalized):
    """Mixtures of activations compute coefficients and activations together."""
    nn.clear_parameters()
    weights, activations = (
        SETS["min-max"][0],
        (dqa.EMAMinMax(2), dqa.EMAMinMax(4), dqa.EMAMinMax(8)),
    )
    images = [nn.Variable((6, 3, 9, 9)), nn.Variable((2, 3, 9, 9))]
    losses = []
    for x, train in zip(images, (True, False)):
        with dqa.quantizers(*weights, activations=activations):
            h = PF.dqa_convolution(x, 8, (3, 3), name="a")
            h = NPF.batch_normalization(h, batch_stat=train, name="a") if normalized else h
            losses.append(F.mean(PF.dqa_affine(F.relu(h), 4, name="c") ** 2.0))
    loss = losses[0] + dqa.regularizer(3.0)
    leaves = []
    loss.visit(lambda f: leaves.extend(v for v in f.inputs if v.parent is None))
    assert images[0] in leaves
    assert images[1] not in leaves


def test_a_penalty_on_the_coefficients_of_another_graph():
    """The regularizer may take those of the graph that is only evaluated."""

    def made():
        nn.clear_parameters()
        nn.random.prng = np.random.RandomState(0)
        x, t = nn.Variable((6, 3, 9, 9)), nn.Variable((6, 1))
        rng = np.random.RandomState(1)
        x.d, t.d = rng.randn(*x.shape), rng.randint(0, 4, t.shape)
        graphs = []
        for source in (x, nn.Variable((2, 3, 9, 9))):
            with dqa.quantizers(*SETS["min-max"][0]):
                h = F.relu(PF.dqa_convolution(source, 8, (3, 3), name="a"))
                graphs.append(PF.dqa_affine(h, 4, name="c"))
        loss = F.mean(F.softmax_cross_entropy(graphs[0], t)) + dqa.regularizer(300.0)
        return loss, graphs

    loss, graphs = made()
    assert types_of(loss).count(MIXTURE) == 4
    expected = gradients(loss)
    loss, graphs = made()
    accelerate(loss)
    assert_close(gradients(loss), expected)
    del graphs


def test_gradients_of_attention_come_without_a_penalty_too():
    expected = gradients(small_net(*SETS["min-max"], penalty=False)[0])
    loss = small_net(*SETS["min-max"], penalty=False)[0]
    accelerate(loss)
    assert_close(gradients(loss), expected)
    assert all(np.abs(g).max() > 0 for name, g in expected[1].items() if name.endswith("alpha"))


@pytest.mark.parametrize("model", ["resnet20_32", "resnet18_32", "mobilenetv2_32"])
def test_models_agree_with_nnabla(model):
    """By running statistics: with those of the batch a ReLU that turns is felt everywhere."""

    def made():
        nn.clear_parameters()
        nn.random.prng = np.random.RandomState(0)
        x = nn.Variable((4, 3, 32, 32))
        x.d = np.random.RandomState(1).rand(*x.shape)
        y = build(model, x, 10, width=0.25, train=False)
        return F.mean(y**2.0)

    expected = gradients(made())
    loss = made()
    assert accelerate(loss).parts == 1
    found = gradients(loss)
    assert_close(found, expected)


def test_threads_change_no_bit(monkeypatch):
    found = []
    for threads in ("1", "2", "5"):
        monkeypatch.setenv("NNABLA_DQA_THREADS", threads)
        loss = small_net(*SETS["min-max"])[0]
        accelerate(loss)
        found.append([gradients(loss) for _ in range(3)])
    for other in found[1:]:
        for (loss, arrays), (other_loss, other_arrays) in zip(found[0], other):
            assert loss == other_loss
            for name, array in arrays.items():
                np.testing.assert_array_equal(other_arrays[name], array, err_msg=name)


def test_what_has_no_layer_divides_the_graph():
    loss = small_net(*SETS["min-max"], dropout=True)[0]
    summary = accelerate(loss)
    assert summary.parts == 2
    assert summary.left["Dropout: there is no layer for it"] == 1
    types = types_of(loss)
    assert types.count(NAME) == 2
    assert types.count("Dropout") == 1
    first = gradients(loss)
    expected = gradients(small_net(*SETS["min-max"], dropout=True)[0])
    assert first[1].keys() == expected[1].keys()


def test_a_variable_within_is_kept():
    loss, y, *_ = small_net(*SETS["min-max"])
    y.persistent = True
    gradients(loss)
    expected = y.d.copy(), y.g.copy()
    loss, y, *_ = small_net(*SETS["min-max"])
    y.persistent = True
    accelerate(loss, keep=[y])
    gradients(loss)
    np.testing.assert_allclose(y.d, expected[0], atol=1e-5)
    np.testing.assert_allclose(y.g, expected[1], atol=1e-6)


def test_a_persistent_variable_within_is_kept():
    x = nn.Variable.from_numpy_array(np.random.RandomState(0).randn(2, 3, 6, 6))
    h = NPF.convolution(x, 4, (3, 3), name="a")
    h.persistent = True
    loss = F.sum(NPF.affine(F.relu(h), 2, name="b"))
    h.forward()
    expected = h.d.copy()
    (new,) = fast([loss], trains=True)
    h.data.zero()
    new.forward(clear_no_need_grad=True)
    np.testing.assert_allclose(h.d, expected, atol=1e-5)


def test_the_given_graph_stays_as_it_is():
    loss = small_net(*SETS["min-max"])[0]
    before = types_of(loss)
    expected = gradients(loss)
    (new,) = fast([loss], trains=True)
    assert types_of(loss) == before
    assert_close(gradients(new), expected)
    assert float(loss.d) == float(new.d)
    assert_close(gradients(loss), expected)


def test_a_graph_that_is_only_evaluated_takes_less_memory():
    loss, y, *_ = small_net(*SETS["min-max"])
    y.forward()
    expected = y.d.copy()
    (new,) = fast([y], trains=False)
    new.forward(clear_buffer=True)
    np.testing.assert_allclose(new.d, expected, atol=1e-4)
    del loss


@pytest.mark.parametrize(
    ("name", "keeps"),
    [("min-max", False), ("min-max", True), ("binary", False), ("Binary-Relax", True)],
)
def test_saving_writes_nnablas_functions(name, keeps, tmp_path):
    """The file is that of the graph before, and a plain NNabla computes the same loss."""

    def written(path, loss, x, t):
        outputs = {"l": loss, "y": y}
        network = {"name": "n", "batch_size": 6, "outputs": outputs, "names": {"x": x, "t": t}}
        executor = {"name": "e", "network": "n", "data": ["x", "t"], "output": ["l"]}
        save(str(path), {"networks": [network], "executors": [executor]})
        return zipfile.ZipFile(path).read("network.nntxt")

    loss, y, x, t = small_net(*SETS[name])
    before = written(tmp_path / "before.nnp", loss, x, t)
    accelerate(loss, keep=[y] if keeps else [])
    value, _ = gradients(loss)
    after = written(tmp_path / "after.nnp", loss, x, t)
    count = before.count(b"\n  function {")
    assert count == after.count(b"\n  function {") > 20
    assert NAME.encode() not in after
    network = NnpLoader(str(tmp_path / "after.nnp")).get_network("n")
    assert set(network.inputs) == {"x", "t"}
    network.inputs["x"].d, network.inputs["t"].d = x.d, t.d
    # The statistics that the loaded graph normalizes by are those of the batch.
    network.outputs["l"].forward()
    assert float(network.outputs["l"].d) == pytest.approx(value, rel=1e-5)


@pytest.mark.parametrize("verb", ["deploy", "convert"])
def test_what_reads_graphs_says_that_it_cannot(verb, tmp_path):
    loss, _, x, t = small_net(*SETS["min-max"])
    accelerate(loss)
    calls = {
        "deploy": lambda: dqa.deploy(
            tmp_path / "a.nnp", {"x": x, "t": t}, {"y": loss}, allow_untrained=True
        ),
        "convert": lambda: dqa.convert(loss, dqa.Rules(SETS["min-max"][0])),
    }
    with pytest.raises(ValueError, match="are on oneDNN") as error:
        calls[verb]()
    assert "build the graph once more for this" in str(error.value)


def test_twice_changes_nothing():
    loss = small_net(*SETS["min-max"])[0]
    accelerate(loss)
    expected = gradients(loss)
    assert accelerate(loss).parts == 0
    assert_close(gradients(loss), expected)


class Own(PythonFunction):
    name = "Own"

    def min_outputs(self):
        return 1

    def setup_impl(self, inputs, outputs):
        outputs[0].reset_shape(inputs[0].shape, True)

    def grad_depends_output_data(self, i, o):
        return False

    def grad_depends_input_data(self, i, j):
        return False


def test_a_function_in_python_behind_layers_is_refused():
    x = nn.Variable((2, 3, 6, 6))
    loss = F.sum(Own()(NPF.convolution(x, 4, (3, 3))))
    with pytest.raises(dqa.OneDnnError, match="function Own is not one of NNabla's own"):
        accelerate(loss)
    assert "Own" in types_of(loss)
    with pytest.warns(dqa.BackendWarning, match="NNabla computes the layers, not oneDNN"):
        assert fast([loss], trains=True)[0] is loss


def test_a_parameter_that_is_trained_after_all():
    x = nn.Variable((2, 3, 6, 6), need_grad=False)
    loss = F.sum(NPF.convolution(F.relu(NPF.convolution(x, 4, (3, 3), name="a")), 4, (3, 3)))
    functions = []
    loss.visit(functions.append)
    w = functions[0].inputs[1]
    w.need_grad = False
    accelerate(loss)
    w.need_grad = True
    loss.forward()
    with pytest.raises((dqa.OneDnnError, SystemError)) as error:
        loss.backward()
    found = error.value if isinstance(error.value, dqa.OneDnnError) else error.value.__cause__
    assert "of shape (4, 3, 3, 3), needed no gradient when they were built" in str(found)


def test_no_gradient_reaches_what_is_detached():
    x = nn.Variable.from_numpy_array(np.random.RandomState(0).randn(2, 3, 6, 6))
    h = NPF.convolution(x, 4, (3, 3), name="a")
    h.need_grad = False
    loss = F.sum(NPF.convolution(h, 4, (3, 3), name="b"))
    accelerate(loss)
    _, found = gradients(loss)
    assert not np.abs(found["a/conv/W"]).any()
    assert np.abs(found["b/conv/W"]).any()


def test_the_choice(monkeypatch):
    y = NPF.affine(nn.Variable((2, 3)), 4)
    assert fast([y], trains=True)[0] is not y
    with dqa.backend(layers="nnabla"):
        assert fast([y], trains=True)[0] is y
        assert layers_by(nn.get_current_context()) == "NNabla: NNabla was chosen"
    half = nn.Context(["cpu:half", "cpu:float"], "CpuCachedArray", "0")
    with nn.context_scope(half):
        assert fast([y], trains=True)[0] is y
    monkeypatch.setattr("nnabla_dqa.onednn.accelerate.why_not", lambda: "it is not installed")
    assert fast([y], trains=True)[0] is y
    with dqa.backend(layers="onednn"), pytest.raises(dqa.OneDnnError, match="not installed"):
        fast([y], trains=True)
    with pytest.raises(ValueError, match="layers='mkl' is none of auto, onednn, nnabla"):
        dqa.backend(layers="mkl").__enter__()


def test_a_missing_library_says_what_to_install(monkeypatch):
    library.library.cache_clear()
    library.why_not.cache_clear()
    monkeypatch.setattr(library, "PACKAGE", "no-such-package")
    try:
        y = NPF.affine(nn.Variable((2, 3)), 4)
        text = "oneDNN is not installed: pip install 'nnabla_dqa[onednn]' (no-such-package)"
        assert accelerate(y) == (0, 0, {}, text)
        with dqa.backend(layers="onednn"), pytest.raises(dqa.OneDnnError) as error:
            accelerate(y)
        assert str(error.value) == f"oneDNN cannot be used: {text}"
    finally:
        library.library.cache_clear()
        library.why_not.cache_clear()


@pytest.mark.parametrize("quantizers", ["min-max", "one quantizer"])
def test_variables_that_share_an_array_share_its_gradient(quantizers):
    """Two layers of the same weights, by variables of their own."""

    def made():
        nn.clear_parameters()
        nn.random.prng = np.random.RandomState(0)
        x = nn.Variable((4, 3, 8, 8))
        x.d = np.random.RandomState(1).randn(*x.shape)
        h = x
        for _ in range(3):
            with dqa.quantizers(*SETS[quantizers][0]):
                h = F.tanh(PF.dqa_convolution(h, 3, (3, 3), pad=(1, 1), name="a"))
        w, b = (nn.get_parameters()[f"a/conv/{name}"] for name in "Wb")
        w, b = (v.get_unlinked_variable(need_grad=True) for v in (w, b))
        return F.sum(F.convolution(h, w, b))

    expected = gradients(made())
    loss = made()
    accelerate(loss)
    assert_close(gradients(loss), expected)
