"""A live graph rebuilt with mixtures: same names, same numbers, same training as dqa_ layers."""

from __future__ import annotations

import warnings

import nnabla as nn
import nnabla.functions as F
import nnabla.parametric_functions as NPF
import nnabla.solvers as S
import numpy as np
import pytest
from nnabla.function import PythonFunction

import nnabla_dqa as dqa
import nnabla_dqa.parametric_functions as PF


def model(x, train=False, layers=NPF, prefix=""):
    """All kinds of layers, a shared one, in-place functions and two outputs."""
    make = {kind: getattr(layers, f"{prefix}{kind}") for kind in KINDS}
    h = make["convolution"](x, 6, (3, 3), pad=(1, 1), name="c1")
    h = F.relu(NPF.batch_normalization(h, batch_stat=train, name="bn"), inplace=True)
    for _ in range(2):
        h = F.tanh(make["convolution"](h, 6, (1, 1), with_bias=False, name="shared"))
    h = make["depthwise_convolution"](h, (3, 3), pad=(1, 1), name="dw") + h
    h = make["deconvolution"](h, 4, (2, 2), stride=(2, 2), name="up")
    h = make["depthwise_deconvolution"](h, (2, 2), name="dwup")
    return make["affine"](h, 5, name="fc"), F.sum(h, axis=(1, 2, 3))


KINDS = (
    "convolution",
    "affine",
    "depthwise_convolution",
    "deconvolution",
    "depthwise_deconvolution",
)
NAMES = ["c1/conv", "shared/conv", "dw/depthwise_conv", "up/deconv", "dwup/depthwise_deconv"]
NAMES.append("fc/affine")


def variable(seed=0):
    return nn.Variable.from_numpy_array(np.random.RandomState(seed).randn(2, 3, 6, 6))


def values(outputs):
    nn.forward_all(list(outputs))
    return [v.d.copy() for v in outputs]


def test_full_precision_alone_changes_nothing():
    plain = model(variable())
    converted = dqa.convert(plain, "float")
    for a, b in zip(values(plain), values(converted)):
        np.testing.assert_array_equal(a, b)
    assert [layer.name for layer in dqa.find_quantized()] == NAMES


@pytest.mark.parametrize("notation", ["minmax:2,4,8", "sawb:2", "bwn/twn/float", "minmax:2@0"])
def test_it_trains_as_dqa_layers_do(notation):
    """The parameters after some updates are the same."""
    from nnabla_dqa.quantization.notation import parse_quantizers

    results = []
    for converted in (True, False):
        nn.clear_parameters()
        nn.seed(0)
        x = variable()
        if converted:
            y = dqa.convert(model(x, train=True), notation)
        else:
            with dqa.quantizers(*parse_quantizers(notation).quantizers):
                y = model(x, train=True, layers=PF, prefix="dqa_")
        loss = F.mean(F.tanh(y[0])) + F.mean(F.tanh(y[1]))
        mixed = any(layer.state for layer in dqa.find_quantized())
        solver = dqa.attach(S.Momentum(0.01), dqa.TemperatureSchedule(20) if mixed else None)
        solver.set_parameters(nn.get_parameters())
        for _ in range(3):
            loss.forward()
            solver.zero_grad()
            loss.backward()
            solver.update()
        results.append({k: v.d.copy() for k, v in nn.get_parameters(grad_only=False).items()})
    assert set(results[0]) == set(results[1])
    for name, value in results[0].items():
        # Shared weights are mixed once here and twice there: their gradients add up otherwise.
        np.testing.assert_allclose(value, results[1][name], rtol=1e-6, atol=1e-7, err_msg=name)


def test_names_and_parameters_stay_and_state_comes_beside():
    y = model(variable())
    before = nn.get_parameters(grad_only=False)
    dqa.convert(y, [dqa.Rule("c1/*", "float"), dqa.Rule("fc/affine/W", "sawb:2,4,8")])
    after = nn.get_parameters(grad_only=False)
    assert [name for name in after if "/dqa/" not in name] == list(before)
    assert all(after[name].data == v.data for name, v in before.items())
    state = [name for name in after if name.startswith("c1/") and "dqa" in name]
    assert [name.rpartition("/")[0] for name in state] == ["c1/conv/dqa/config"]
    quantizers = {layer.name: str(layer.mixture.target_quantizer) for layer in dqa.find_quantized()}
    assert quantizers["c1/conv"] == "FullPrecision()"
    assert quantizers["fc/affine"].startswith("SAWB(bits=2")
    assert quantizers["shared/conv"].startswith("MinMax(bits=2")


def test_shared_weights_get_one_attention_and_are_mixed_once():
    y = dqa.convert(model(variable()), "minmax:2,4,8")
    kinds = []
    y[0].visit(lambda f: kinds.append(f.info.type_name))
    single = dqa.convert(NPF.affine(variable(), 5, name="one"), "minmax:2,4,8")
    inside = []
    single.visit(lambda f: inside.append(f.info.type_name))
    assert kinds.count("DQAMixture") == len(NAMES)
    assert inside.count("DQAMixture") == 1


def test_the_original_graph_stays_and_what_nothing_changed_is_shared():
    x = variable()
    early = F.tanh(x)
    y = NPF.affine(early, 5, name="fc")
    before = values([y])[0]
    new = dqa.convert(y, "minmax:2")
    assert new is not y
    assert new.parent.inputs[0] == early
    assert isinstance(dqa.convert([F.relu(y)], "minmax:2"), tuple)
    np.testing.assert_array_equal(values([y])[0], before)
    nn.forward_all([new])
    assert len(np.unique(new.parent.inputs[1].d)) == 4


def test_training_and_evaluation_graph_share_attention_and_deploy(tmp_path):
    x = variable()
    dqa.convert(model(x, train=True), "minmax:2,4,8")
    y = dqa.convert(model(x), "minmax:2,4,8")
    states = [name for name in nn.get_parameters(grad_only=False) if name.endswith("/alpha")]
    assert len(states) == len(NAMES)
    path = tmp_path / "d.nnp"
    dqa.deploy(path, {"x": x}, {"y": y[0]}, allow_untrained=True)
    assert dqa.check_file(path).ok
    with dqa.hard():
        hard = dqa.convert(model(x), "minmax:2,4,8")
    loaded = nn.graph_def.load(str(path))(x)
    np.testing.assert_array_equal(values([loaded])[0], values([hard[0]])[0])


def test_fixed_weights_and_embed():
    x = nn.Variable((2, 3))
    h = NPF.embed(x, 7, 4, name="e")
    y = NPF.affine(h, 2, fix_parameters=True, name="fc")
    dqa.convert(y, "minmax:2,4,8")
    layers = {layer.name: layer for layer in dqa.find_quantized()}
    assert layers["e/embed"].function == "Embed"
    assert layers["fc/affine"].is_fixed
    assert not layers["e/embed"].is_fixed


def test_what_is_left_alone_is_named():
    x = variable()
    w = F.tanh(nn.parameter.get_parameter_or_create("w", (108, 5)))
    tied = nn.parameter.get_parameter_or_create("tied", (108, 5))
    y = (
        F.affine(x, w)
        + F.affine(x, tied)
        + F.sum(tied, axis=0, keepdims=True)
        + NPF.affine(x, 5, name="fc")
    )
    with pytest.warns(UserWarning, match="skipped: ") as caught:
        dqa.convert(y, "minmax:2")
    told = " ".join(str(entry.message) for entry in caught)
    assert "computed" in told
    assert "tied" in told
    assert [layer.name for layer in dqa.find_quantized()] == ["fc/affine"]


class Double(PythonFunction):
    """A function of Python."""

    name = "Double"

    def min_outputs(self):
        return 1

    def setup_impl(self, inputs, outputs):
        outputs[0].reset_shape(inputs[0].shape, True)

    def forward_impl(self, inputs, outputs):
        outputs[0].d = 2 * inputs[0].d

    def grad_depends_output_data(self, i, o):
        return False

    def grad_depends_input_data(self, i, j):
        return False

    def backward_impl(self, inputs, outputs, propagate_down, accum):
        inputs[0].g = 2 * outputs[0].g


def test_errors():
    x = variable()
    with pytest.raises(ValueError, match="no layer"):
        dqa.convert(F.relu(x), "minmax:2")
    y = NPF.affine(x, 5, name="fc")
    with pytest.raises(ValueError, match=r"matches no layer; the layers are: fc/affine"):
        dqa.convert(y, [dqa.Rule("nix", "minmax:2")])
    with pytest.raises(ValueError, match="both match layer fc/affine"):
        dqa.convert(y, [dqa.Rule("f*", "minmax:2"), dqa.Rule("*c/*", "bwn")])
    with pytest.raises(ValueError, match="Double is not one of NNabla's own"):
        dqa.convert(Double()(y), "minmax:2")
    nn.clear_parameters()
    converted = dqa.convert(NPF.affine(x, 5, name="fc"), "minmax:2,4,8")
    with pytest.raises(ValueError, match="layer fc/affine of the graph is a DQA layer already"):
        dqa.convert(converted, "minmax:2,4,8")
    with warnings.catch_warnings(), pytest.raises(ValueError, match="state belongs to other"):
        dqa.convert(NPF.affine(x, 5, name="fc"), "sawb:2")


def test_a_cut_gradient_stays_cut():
    """What the user detached stays detached in the rebuilt graph."""
    h = NPF.convolution(variable(), 4, (3, 3), name="c1")
    h.need_grad = False
    y = dqa.convert(NPF.affine(h, 5, name="fc"), "minmax:2")
    loss = F.sum(y)
    parameters = nn.get_parameters()
    for v in parameters.values():
        v.g = 0
    loss.forward()
    loss.backward()
    assert not parameters["c1/conv/W"].g.any()
    assert parameters["fc/affine/W"].g.any()
