"""Deployed activations: standard functions with fixed ranges, equal to the hard graph."""

from __future__ import annotations

import nnabla as nn
import nnabla.functions as F
import numpy as np
import pytest

import nnabla_dqa as dqa
import nnabla_dqa.parametric_functions as PF
from nnabla_dqa.graph.activations import fixed_quantizer
from nnabla_dqa.nnp_format.archive import Archive
from tests.layers.test_activations import LSQ, MINMAX, PACT, STEPS, Net, quiet

SETS = {
    "min-max": MINMAX,
    "PACT": PACT,
    "LSQ": LSQ,
    "signed LSQ": (dqa.LSQ(3),),
    "LSQ with an offset": (dqa.LSQ(3, offset=True),),
    "sign": (dqa.Sign(),),
    "PACT alone": PACT[1:2],
    "with float": (dqa.PACT(2), dqa.FullPrecision()),
}


def trained(activations, first=None):
    mixing = None if len(activations) != 2 else dqa.Attention(normalize="none")
    net = Net(activations, mixing, first=first)
    for _ in range(STEPS):
        net.step()
    return net


@quiet
@pytest.mark.parametrize("hard", [False, True])
@pytest.mark.parametrize("kind", sorted(SETS))
def test_output_equals_the_hard_graph_and_activations_lie_on_their_levels(kind, hard, tmp_path):
    net = trained(SETS[kind], {"activations": [dqa.LSQ(8)]})
    graph = net.hard if hard else net.y
    result = dqa.deploy(tmp_path / "d.nnp", {"x": net.x}, {"y": graph})
    net.x.d = np.random.RandomState(5).randn(*net.x.shape) * 2
    net.hard.forward()
    deployed = nn.graph_def.load(str(tmp_path / "d.nnp"))(net.x)
    deployed.forward()
    np.testing.assert_array_equal(deployed.d, net.hard.d)
    rows = {row.layer: row for row in result.activations}
    assert rows["b/affine:input"].bits == SETS[kind][0].bits
    assert rows["a/affine:input"].bits == 8
    assert dqa.check_file(tmp_path / "d.nnp").ok
    found = dqa.check_activations(tmp_path / "d.nnp", {"x": net.x.d})
    assert found.ok
    assert [(row.layer, row.levels) for row in found.rows] == [
        ("a/affine:input", 256),
        ("b/affine:input", 2 ** SETS[kind][0].bits),
    ]
    least = 1 if kind == "sign" else 2
    assert all(least <= row.values <= row.levels for row in found.rows)
    functions = [f.type for f in Archive.read(tmp_path / "d.nnp").definition.network[0].function]
    assert set(functions) <= {
        *("Affine", "ReLU", "Round", "Sign", "MulScalar", "AddScalar"),
        *("MinimumScalar", "MaximumScalar"),
    }


@quiet
def test_any_batch_size_runs(tmp_path):
    net = trained(PACT)
    dqa.deploy(tmp_path / "d.nnp", {"x": net.x}, {"y": net.y})
    x = nn.Variable.from_numpy_array(np.random.RandomState(1).randn(3, 5).astype(np.float32))
    y = nn.graph_def.load(str(tmp_path / "d.nnp"))(x)
    y.forward()
    assert y.shape == (3, 3)


@quiet
def test_a_convolution_with_padding_and_a_layer_used_twice(tmp_path):
    x = nn.Variable.from_numpy_array(np.random.RandomState(0).randn(2, 3, 6, 6).astype(np.float32))

    def model(x):
        with dqa.quantizers(dqa.SAWB(2), activations=[dqa.EMAMinMax(2)]):
            h = F.relu(PF.dqa_convolution(x, 4, (3, 3), pad=(1, 1), name="c1"))
            for _ in range(2):
                h = F.relu(PF.dqa_convolution(h, 4, (3, 3), pad=(1, 1), name="c2"))
            return PF.dqa_affine(h, 2, name="fc")

    loss = F.mean(F.pow_scalar(model(x), 2.0))
    with dqa.hard():
        y = model(x)
    solver = dqa.attach(nn.solvers.Sgd(0.01))
    solver.set_parameters(nn.get_parameters())
    loss.forward()
    solver.zero_grad()
    loss.backward()
    solver.update()
    result = dqa.deploy(tmp_path / "d.nnp", {"x": x}, {"y": y})
    assert [row.name for row in result.activations] == [
        "c2/conv/input",
        "c2/conv/input_2",
        "fc/affine/input",
    ]
    y.forward()
    deployed = nn.graph_def.load(str(tmp_path / "d.nnp"))(x)
    deployed.forward()
    np.testing.assert_array_equal(deployed.d, y.d)
    assert dqa.check_activations(tmp_path / "d.nnp", {"x": x.d}).ok


def test_ranges_that_have_seen_no_data_are_not_deployed(tmp_path):
    for activations, what in ((MINMAX, "range"), (PACT, "clip"), (LSQ, "step")):
        nn.clear_parameters()
        net = Net(activations)
        match = rf"layer b/affine:input: .* its {what} has seen no data"
        with pytest.raises(ValueError, match=match):
            dqa.deploy(tmp_path / "d.nnp", {"x": net.x}, {"y": net.y}, allow_untrained=True)
    assert not list(tmp_path.iterdir())


@quiet
def test_a_file_whose_levels_are_not_those_it_states_is_found_out(tmp_path):
    net = trained(MINMAX)
    dqa.deploy(tmp_path / "d.nnp", {"x": net.x}, {"y": net.y})
    archive = Archive.read(tmp_path / "d.nnp")
    archive.metadata["activations"][0]["scale"] *= 1.01
    archive.write(tmp_path / "e.nnp")
    found = dqa.check_activations(tmp_path / "e.nnp", {"x": 20 * net.x.d})
    assert not found.ok
    assert "is not one of its levels" in str(found)


@pytest.mark.parametrize("bits", [2, 3, 8])
@pytest.mark.parametrize("kind", [dqa.EMAMinMax, dqa.PACT, dqa.LSQ])
def test_scalar_functions_give_the_codes_bits(kind, bits):
    x = np.random.RandomState(bits).randn(1, 5000).astype(np.float32)
    state = {
        "range": np.array([[-0.73, 1.37, 1]], np.float32),
        "clip": np.array([[1.137]], np.float32),
        "step": np.array([[0.1173]], np.float32),
    }
    q, scale, offset = fixed_quantizer(nn.Variable.from_numpy_array(x), kind(bits), state)
    q.forward()
    np.testing.assert_array_equal(q.d, kind(bits).quantize(x, state))
    assert offset <= 0 < scale


@quiet
def test_convert_quantizes_activations_by_rules_and_leaves_the_networks_input_alone(tmp_path):
    x = nn.Variable.from_numpy_array(np.random.RandomState(0).randn(2, 3, 6, 6).astype(np.float32))
    h = F.relu(PF.convolution(x, 4, (3, 3), name="c1"))
    h = F.relu(PF.convolution(h, 4, (3, 3), name="c2"))
    y = PF.affine(F.relu(PF.affine(h, 5, name="f1")), 3, name="f2")
    rules = dqa.Rules(
        "sawb:2",
        (dqa.Rule("f2*", "sawb:4", activations="lsq:4,signed=false"),),
        activations="pact:2,4,8",
        keep_activations=("f1*",),
    )
    q = dqa.convert(y, rules)
    found = {t.name: t.mixture for t in dqa.find_quantized() if not t.is_weight}
    assert {name: str(m.target_quantizer.bits) for name, m in found.items()} == {
        "c2/conv:input": "2",
        "f2/affine:input": "4",
    }
    assert found["c2/conv:input"] == dqa.make_mixture(*PACT)
    loss = F.mean(F.pow_scalar(q, 2.0))
    solver = dqa.attach(nn.solvers.Sgd(0.01), dqa.TemperatureSchedule(4, hard_fraction=0.5))
    solver.set_parameters(nn.get_parameters())
    for _ in range(4):
        loss.forward()
        solver.zero_grad()
        loss.backward()
        solver.update()
    with dqa.hard():
        hard = dqa.convert(y, rules)
    hard.forward()
    q.forward()
    np.testing.assert_array_equal(q.d, hard.d)
    result = dqa.deploy(tmp_path / "d.nnp", {"x": x}, {"y": q})
    assert [(a.layer, a.bits) for a in result.activations] == [
        ("c2/conv:input", 2),
        ("f2/affine:input", 4),
    ]
    deployed = nn.graph_def.load(str(tmp_path / "d.nnp"))(x)
    deployed.forward()
    np.testing.assert_array_equal(deployed.d, hard.d)


def test_a_rule_can_ask_for_the_networks_input():
    y = PF.affine(nn.Variable((2, 3)), 4, name="f1")
    dqa.convert(y, [dqa.Rule("f1*", "minmax:2", activations="lsq:8")])
    assert [t.name for t in dqa.find_quantized()] == ["f1/affine", "f1/affine:input"]


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        ({"activations": "minmax:2"}, r"layer f2/affine: MinMax\(.* quantizes weights alone"),
        ({"activations": "pact:2", "keep_activations": "g*"}, "keep_activations 'g\\*' matches no"),
        ({"activations": "lsq:2@channel"}, "they have one range, not one per channel"),
        ({"keep_activations": "f1*"}, "keep_activations is for nothing"),
        ({"keep_activations": 3}, "key 'keep_activations' must be a name glob or a list"),
    ],
)
def test_rules_that_cannot_be(rules, message):
    h = F.relu(PF.affine(nn.Variable((2, 3)), 4, name="f1"))
    y = PF.affine(h, 4, name="f2")
    with pytest.raises(ValueError, match=message):
        dqa.convert(y, dqa.Rules.from_mapping({"quantizers": "sawb:2", **rules}))
