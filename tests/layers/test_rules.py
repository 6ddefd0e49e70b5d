"""Rules: which layer gets which quantizers, and what is refused."""

from __future__ import annotations

import pytest

from nnabla_dqa import SAWB, Attention, BinaryRelax, FullPrecision, MinMax
from nnabla_dqa.layers.functions import CHANNEL_AXIS
from nnabla_dqa.layers.rules import DEFAULT_RULE, Rule, Rules, mixing_rule
from nnabla_dqa.mixing import Single
from nnabla_dqa.nnp.convert import convert_file
from nnabla_dqa.nnp.layers import FileLayer, Use, discover
from nnabla_dqa.quantization.notation import QuantizerSet
from tests.nnp.networks import Net, small


def layer(weight, function="Conv", axis=0, shape=(4, 3, 3, 3)):
    return FileLayer(weight, shape, axis, (Use("net", function, "Convolution"),))


LAYERS = [
    layer("c1/conv/W", "Convolution"),
    layer("c2/conv/W", "Convolution_2"),
    layer("fc/affine/W", "Affine", -1, (6, 5)),
    layer("fc/weight", "Affine_2", -1, (6, 5)),
    layer("block{0}[1]/W", "Affine[3]", -1, (6, 5)),
]


def targets(rules):
    return {name: str(a.mixture) for name, a in Rules.of(rules).assign(LAYERS).items()}


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("c1/conv", ["c1/conv"]),
        ("c1/conv/W", ["c1/conv"]),
        ("Convolution_2", ["c2/conv"]),
        ("c?/*", ["c1/conv", "c2/conv"]),
        ("*/W", ["c1/conv", "c2/conv", "fc/affine", "block{0}[1]"]),
        ("[cf]*", ["c1/conv", "c2/conv", "fc/affine", "fc/weight"]),
        ("fc/weight", ["fc/weight"]),
        ("Affine*", ["fc/affine", "fc/weight", "block{0}[1]"]),
        ("block{0}[1]", ["block{0}[1]"]),
        ("Affine[3]", ["block{0}[1]"]),
        ("*", [entry.name for entry in LAYERS]),
    ],
)
def test_patterns_match_layers_weights_and_functions(pattern, names):
    assigned = Rules("minmax:4", (Rule(pattern, "minmax:2"),)).assign(LAYERS)
    assert list(assigned) == [entry.name for entry in LAYERS]
    for name, assignment in assigned.items():
        hit = name in names
        assert assignment.rule == (pattern if hit else DEFAULT_RULE)
        assert assignment.mixture.quantizers == (MinMax(2 if hit else 4),)


def test_case_matters_and_nothing_matches_by_its_beginning():
    for pattern in ("C1/conv", "c1", "conv", "Convolution_"):
        with pytest.raises(ValueError) as caught:
            Rules(rules=(Rule(pattern, "float"),)).assign(LAYERS)
        expected = ", ".join(entry.name for entry in LAYERS)
        assert str(caught.value) == f"rule {pattern!r} matches no layer; the layers are: {expected}"


def test_two_rules_for_one_layer_name_both_and_list_the_layers():
    rules = Rules(rules=(Rule("c1*", "float"), Rule("Conv*", "minmax:2")))
    with pytest.raises(ValueError) as caught:
        rules.assign(LAYERS)
    message = str(caught.value)
    assert message.startswith("rules 'c1*' and 'Conv*' both match layer c1/conv; the layers are: ")
    assert all(entry.name in message for entry in LAYERS)


def test_a_long_list_is_cut_and_says_so():
    many = [layer(f"l{i}/W") for i in range(40)]
    with pytest.raises(ValueError, match=r"l29 and 10 more$") as caught:
        Rules(rules=(Rule("none", "float"),)).assign(many)
    assert "l30" not in str(caught.value)
    with pytest.raises(ValueError, match=r"the layers are: \(none\)"):
        Rules(rules=(Rule("none", "float"),)).assign([])


def test_channel_axes_by_function():
    net = Net()
    x = net.input("x", 4, 5, 5)
    h = net.conv(x, 4, "conv/W")
    h = net.deconv(h, 6, "deconv/W")
    h = net.depthwise(h, "depthwise/W")
    h = net.depthwise(h, "up/W", up=True)
    net.affine(h, 7, "affine/W")
    net.embed(net.input("index", 3), 8, 2, "embed/W")
    layers, skipped = discover(net.definition, net.parameters)
    assert not skipped
    assert {use.type for entry in layers for use in entry.uses} == set(CHANNEL_AXIS)
    found = Rules.of("minmax:2,4,8@channel").assign(layers)
    expected = {"conv": 4, "deconv": 6, "depthwise": 6, "up": 6, "affine": 7, "embed": 2}
    for entry in layers:
        quantizer = found[entry.name].mixture.target_quantizer
        assert entry.shape[quantizer.channel_axis] == expected[entry.name]
        # One range per output channel: no two channels on one scale.
        scale = quantizer.encode(net.parameters[entry.weight].array).scale
        assert scale.size == expected[entry.name]


def test_a_deconvolution_with_channels_last(tmp_path):
    net = Net()
    net.deconv(net.input("x", 4, 5, 5), 6, "d/W")
    net.network.function[0].deconvolution_param.channel_last = True
    layers, _ = discover(net.definition, net.parameters)
    assert layers[0].channel_axis == -1


def test_default_is_that_of_the_paper():
    assert set(targets(None or ()).values()) == {
        str(Rule("*", "minmax:2,4,8").mixture_for(LAYERS[0]))
    }
    assert Rules.of("sawb:2,4").quantizers == Rules.of(Rules("sawb:2,4")).quantizers
    assert Rules.of([MinMax(2), FullPrecision()]).quantizers.quantizers == (
        MinMax(2),
        FullPrecision(),
    )


def test_mixing_of_rules_and_of_all_layers():
    relax = BinaryRelax()
    rules = Rules(
        "minmax:2,4",
        (Rule("c1*", "bwn/float"), Rule("c2*", "bwn/float", Attention("uniform"))),
        relax,
    )
    assigned = {name: a.mixture.mixing for name, a in rules.assign(LAYERS[:2]).items()}
    assert assigned["c1/conv"] == relax
    assert assigned["c2/conv"] == Attention("uniform")
    single = Rules("minmax:2", mixing=relax).assign(LAYERS)
    assert {a.mixture.mixing for a in single.values()} == {Single()}


YAML = """
quantizers: minmax:2,4,8
mixing: {type: Attention, init: inverse_bits}
rules:
  - layers: [c1/conv, Affine]
    quantizers: float
  - {layers: "c2*", quantizers: bwn/float, mixing: binary-relax}
"""


def test_yaml(tmp_path):
    (tmp_path / "r.yaml").write_text(YAML)
    rules = Rules.from_yaml(tmp_path / "r.yaml")
    assigned = rules.assign(LAYERS)
    assert {name: a.rule for name, a in assigned.items()} == {
        "c1/conv": "c1/conv",
        "c2/conv": "c2*",
        "fc/affine": "Affine",
        "fc/weight": DEFAULT_RULE,
        "block{0}[1]": DEFAULT_RULE,
    }
    assert assigned["fc/weight"].mixture.mixing == Attention("inverse_bits")
    assert assigned["c2/conv"].mixture.mixing == BinaryRelax()
    assert assigned["fc/affine"].mixture.quantizers == (FullPrecision(),)
    (tmp_path / "empty.yaml").write_text("")
    assert Rules.from_yaml(tmp_path / "empty.yaml") == Rules()


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("[", "not YAML"),
        ("- a", "the rules must be a mapping with the keys quantizers, mixing, rules"),
        ("text", "the rules must be a mapping"),
        ("0", "the rules must be a mapping"),
        ("quantisers: float", "the rules: unknown key 'quantisers'; allowed: quantizers, mixing"),
        ("1: float", "the rules: unknown key 1"),
        ("quantizers: 2", "the rules: key 'quantizers': quantizers must be text such as"),
        ("quantizers: []", "the rules: key 'quantizers': quantizers must be text such as"),
        ("quantizers: [2]", "the rules: key 'quantizers': quantizers must be text such as"),
        ("quantizers: {bits: 2}", "None is none of float, bwn, "),
        ("quantizers: {type: Sawm, bits: 2}", "'Sawm' is none of float, bwn, "),
        ("quantizers: {type: SAWB}", "quantizer SAWB: "),
        (
            "quantizers: {type: SAWB, bits: 2, clip: 3}",
            "SAWB has no field 'clip'; its fields: bits",
        ),
        ("quantizers: {type: SAWB, bits: 9}", "SAWB: bits=9 is not a whole number"),
        ("quantizers: minmx:2", "'minmx' is none of"),
        ("rules: {layers: a}", "key 'rules' must be a list of rules"),
        ("rules:", "key 'rules' must be a list of rules"),
        ("rules: [c1]", "rule 1 must be a mapping with the keys layers, quantizers, mixing"),
        ("rules: [{layers: a, quantizers: float, bits: 2}]", "rule 1: unknown key 'bits'"),
        ("rules: [{quantizers: float}]", "rule 1: key 'layers' must be a name glob or a list"),
        ("rules: [{layers: 3, quantizers: float}]", "rule 1: key 'layers' must be"),
        ("rules: [{layers: [a, 3], quantizers: float}]", "rule 1: key 'layers' must be"),
        ("rules: [{layers: [], quantizers: float}]", "rule 1"),
        ("rules: [{layers: '', quantizers: float}]", "is not a name glob"),
        ("rules: [{layers: a}]", "rule 1: key 'quantizers': quantizers must be text"),
        (
            "rules: [{layers: a, quantizers: float}, {layers: b, quantizers: 'x:1'}]",
            "quantizers 'x:1': 'x' is none of",
        ),
        ("mixing: softmax", "mixing 'softmax' is none of Attention"),
        ("mixing: 3", "key 'mixing': mixing must be a name or {type: ..., ...}; got 3"),
        ("mixing: {type: Softmax}", "'Softmax'"),
        ("mixing: {type: Attention, initial: 1}", "Attention has no field 'initial'"),
        ("mixing: {type: Attention, init: middle}", "init='middle' is none of"),
    ],
)
def test_yaml_that_is_refused_names_the_file_and_the_key(tmp_path, text, reason):
    path = tmp_path / "r.yaml"
    path.write_text(text)
    with pytest.raises(ValueError) as caught:
        Rules.from_yaml(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert reason in message
    assert "\n" not in message


def test_yaml_that_is_not_there_or_not_text(tmp_path):
    with pytest.raises(OSError):
        Rules.from_yaml(tmp_path / "no.yaml")
    (tmp_path / "r.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match="not YAML"):
        Rules.from_yaml(tmp_path / "r.yaml")


def test_mixing_names():
    for name in ("binary_relax", "binary-relax", "BinaryRelax", "BINARYRELAX"):
        assert mixing_rule(name) == BinaryRelax()
    assert mixing_rule("attention") == Attention()
    assert mixing_rule("attention:init=uniform, eps=0.01") == Attention("uniform", eps=0.01)
    assert mixing_rule("{type: attention, init: uniform}") == Attention("uniform")
    assert mixing_rule(None) is None
    for text, reason in (
        ("attention:eps=0", "eps=0 is not positive"),
        ("attention:epsilon=1", "Attention has no field 'epsilon'"),
        ("attention:uniform", "'uniform' is not field=value"),
        ("softmax", "mixing 'softmax' is none of Attention"),
    ):
        with pytest.raises(ValueError, match=reason):
            mixing_rule(text)


FORMS = [
    "[sawb:2, {type: MinMax, bits: [4, 8]}]",
    "[{type: sawb, bits: 2}, {type: MinMax, bits: 4}, 'minmax:8']",
    "[[sawb:2], 'minmax:4,8']",
]


@pytest.mark.parametrize("form", FORMS)
def test_quantizers_as_mappings_and_lists_of_them(form, tmp_path):
    expected = (SAWB(2), MinMax(4), MinMax(8))
    assert Rules(form).quantizers == QuantizerSet(expected)
    (tmp_path / "r.yaml").write_text(
        f"quantizers: {form}\nrules: [{{layers: c1*, quantizers: {form}}}]"
    )
    rules = Rules.from_yaml(tmp_path / "r.yaml")
    assert rules.quantizers.quantizers == rules.rules[0].quantizers.quantizers == expected


def test_rules_of_what_a_yaml_file_holds():
    given = {"quantizers": "sawb:2", "rules": [{"layers": "c1*", "quantizers": "float"}]}
    assert Rules.of(given) == Rules("sawb:2", [Rule("c1*", "float")])
    assert Rules.of({"type": "SAWB", "bits": 2}) == Rules.of([SAWB(2)]) == Rules.of(SAWB(2))


def test_mappings_may_be_per_channel():
    rules = Rules({"type": "SAWB", "bits": [2, 4], "channel_axis": "channel"})
    assert rules.quantizers == QuantizerSet((SAWB(2), SAWB(4)), True)
    assert Rules({"type": "SAWB", "bits": 2, "channel_axis": 0}).quantizers.quantizers == (
        SAWB(2, channel_axis=0),
    )
    with pytest.raises(ValueError, match="they must agree"):
        Rules(["sawb:2@channel", {"type": "MinMax", "bits": 4, "channel_axis": 0}])


def test_a_refused_mixture_names_the_layer():
    for quantizers in ("minmax:4,2", "minmax:8,2"):
        with pytest.raises(ValueError, match=r"^layer c1/conv: .*\[[48], 2\]"):
            Rules(quantizers).assign(LAYERS)
    with pytest.raises(ValueError, match="layer c1/conv"):
        Rules("minmax:2,4", mixing=Single()).assign(LAYERS)


def test_an_axis_that_the_weights_lack_is_refused_by_layer(tmp_path):
    source = small().save(tmp_path / "m.nnp")
    with pytest.raises(ValueError, match=r"fc/affine.*channel_axis=2"):
        convert_file(source, tmp_path / "o.nnp", "minmax:2,4,8@2")
    assert not (tmp_path / "o.nnp").exists()


@pytest.mark.parametrize("pattern", ["", None, 3])
def test_patterns_are_text(pattern):
    with pytest.raises(ValueError, match="is not a name glob"):
        Rule(pattern, "float")
