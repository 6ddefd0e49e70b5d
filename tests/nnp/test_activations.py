"""Activations of an .nnp: converted by rules, trained, deployed as fixed functions, proved."""

from __future__ import annotations

import argparse

import nnabla as nn
import nnabla.functions as F
import nnabla.parametric_functions as NPF
import numpy as np
import pytest

import nnabla_dqa as dqa
import nnabla_dqa.parametric_functions as PF
from nnabla_dqa.commands import convert
from nnabla_dqa.graph.save import save_network
from nnabla_dqa.nnp.file import NetworkFile
from nnabla_dqa.nnp.live import Program
from nnabla_dqa.nnp_format.members import NNPError
from tests.nnp.networks import shared_files

pytestmark = pytest.mark.slow

RULES = dqa.Rules("sawb:2,4,8", activations="pact:2,4,8")
quiet = pytest.mark.filterwarnings("ignore::nnabla_dqa.layers.tensors.AttentionWarning")


def write(path):
    """Its input is scaled before the first layer."""
    nn.seed(3)
    nn.random.prng.seed(3)
    x = nn.Variable((2, 1, 8, 8))
    h = F.relu(NPF.convolution(F.mul_scalar(x, 1 / 255), 4, (3, 3), pad=(1, 1), name="c1"))
    h = NPF.convolution(h, 4, (3, 3), name="c2")
    h = F.relu(NPF.batch_normalization(h, name="bn", batch_stat=False))
    save_network(path, {"x": x}, {"y": NPF.affine(h, 3, name="f")})
    nn.clear_parameters()
    return path


def images(seed=0, count=4):
    return (np.random.RandomState(seed).rand(count, 1, 8, 8) * 255).astype(np.float32)


def trained(folder, rules=RULES, steps=6):
    """A converted and trained file, and the program that trained it."""
    dqa.convert_file(write(folder / "n.nnp"), folder / "c.nnp", rules)
    file = NetworkFile.read(folder / "c.nnp")
    program = Program(file)
    x = nn.Variable.from_numpy_array(images())
    built = program.build("main", 4, {"x": x}, batch_stat=True)
    loss = F.mean(F.pow_scalar(F.add_scalar(built.outputs["y"], -1.0), 2.0))
    with nn.parameter_scope("", program.scope):
        schedule = dqa.TemperatureSchedule(steps, hard_fraction=0.5)
        solver = dqa.attach(nn.solvers.Momentum(0.01), schedule)
        solver.set_parameters(nn.get_parameters())
        for _ in range(steps):
            loss.forward(clear_no_need_grad=True)
            solver.zero_grad()
            loss.backward(clear_buffer=True)
            solver.update()
    file.with_parameters(program.arrays()).save(folder / "t.nnp")
    return program


@quiet
@pytest.mark.parametrize("notation", ["pact:2,4,8", "emaminmax:2,4,8", "lsq:2,4,8,signed=false"])
@pytest.mark.parametrize("fold", [False, True])
def test_convert_train_deploy_check(notation, fold, tmp_path):
    program = trained(tmp_path, dqa.Rules("sawb:2,4,8", activations=notation))
    assert [t.name for t in program.layers if not t.is_weight] == [
        "c2/conv:input",
        "f/affine:input",
    ]
    x = nn.Variable.from_numpy_array(images(1))
    with dqa.hard():
        hard = program.build("main", 4, {"x": x}, batch_stat=False).outputs["y"]
    hard.forward()
    result = dqa.deploy_file(tmp_path / "t.nnp", tmp_path / "d.nnp", fold=fold)
    deployed = nn.graph_def.load(str(tmp_path / "d.nnp"))(x)
    deployed.forward()
    if fold:
        np.testing.assert_allclose(deployed.d, hard.d, rtol=1e-4, atol=1e-4)
    else:
        np.testing.assert_array_equal(deployed.d, hard.d)
    assert [(a.layer, a.bits) for a in result.activations] == [
        ("c2/conv:input", 2),
        ("f/affine:input", 2),
    ]
    assert dqa.check_file(tmp_path / "d.nnp").ok
    found = dqa.check_activations(tmp_path / "d.nnp", {"x": x.d})
    assert found.ok
    assert all(2 <= row.values <= 4 for row in found.rows)


@quiet
def test_a_trained_file_is_read_back_with_its_ranges(tmp_path):
    program = trained(tmp_path)
    again = Program(NetworkFile.read(tmp_path / "t.nnp"))
    x = nn.Variable.from_numpy_array(images(2))
    first = program.build("main", 4, {"x": x}, batch_stat=False).outputs["y"]
    second = again.build("main", 4, {"x": x}, batch_stat=False).outputs["y"]
    nn.forward_all([first, second])
    np.testing.assert_array_equal(first.d, second.d)
    clips = [name for name in again.arrays() if name.endswith("activation/pact/clip")]
    assert len(clips) == 2
    assert all(again.arrays()[name].array > 0 for name in clips)


def test_a_converted_file_opens_in_plain_nnabla(tmp_path):
    dqa.convert_file(write(tmp_path / "n.nnp"), tmp_path / "c.nnp", RULES)
    x = nn.Variable.from_numpy_array(images())
    y = nn.graph_def.load(str(tmp_path / "c.nnp"))(x)
    y.forward()
    assert np.isfinite(y.d).all()


def test_ranges_without_data_are_not_deployed(tmp_path):
    dqa.convert_file(write(tmp_path / "n.nnp"), tmp_path / "c.nnp", RULES)
    with pytest.raises(NNPError, match=r"layer c2/conv:input: .* its clip has seen no data"):
        dqa.deploy_file(tmp_path / "c.nnp", tmp_path / "d.nnp", allow_untrained=True)
    assert not (tmp_path / "d.nnp").exists()


def test_rules_choose_and_keep(tmp_path):
    rules = dqa.Rules(
        "sawb:2",
        (dqa.Rule("c1*", "sawb:4", activations="lsq:8"),),
        activations="pact:2",
        keep_activations=("f*",),
    )
    result = dqa.convert_file(write(tmp_path / "n.nnp"), tmp_path / "c.nnp", rules)
    file = NetworkFile.read(tmp_path / "c.nnp")
    found = {name: a.activations and str(a.activations) for name, a in file.assigned.items()}
    assert found == {
        "c1/conv": str(dqa.LSQ(8)),
        "c2/conv": str(dqa.PACT(2)),
        "f/affine": None,
    }
    assert "PACT2" in str(result)
    assert "runs the converted file with float ones" in result.messages[-1]


def test_a_file_kept_float_keeps_float_activations(tmp_path):
    rules = dqa.Rules("sawb:2", (dqa.Rule("f*", "float"),), activations="pact:2")
    dqa.convert_file(write(tmp_path / "n.nnp"), tmp_path / "c.nnp", rules)
    assert NetworkFile.read(tmp_path / "c.nnp").assigned["f/affine"].activations is None


@pytest.mark.parametrize("source", shared_files())
def test_files_of_others_convert_and_build(source, tmp_path):
    try:
        result = dqa.convert_file(source, tmp_path / "c.nnp", RULES)
    except dqa.NothingToConvertError as nothing:
        assert "\n" not in str(nothing)  # noqa: PT017
        return
    file = NetworkFile.read(tmp_path / "c.nnp")
    network = file.networks[0]
    try:
        Program(NetworkFile.read(source)).build(network, 2)
    except ValueError:
        pass  # NNabla cannot build the float file either.
    else:
        Program(file).build(network, 2)
    assert {n: a.activations for n, a in file.assigned.items()} == {
        n: a.activations for n, a in result.file.assigned.items()
    }


def converted_by(arguments):
    """What ``nnabla-dqa convert`` makes of these arguments, by the layers' names."""
    parser = argparse.ArgumentParser()
    convert.add(parser)
    parsed = parser.parse_args([str(argument) for argument in arguments])
    assert convert.run(parsed, lambda _: None) == 0
    assigned = NetworkFile.read(parsed.output).assigned
    return {name: str(a.activations) for name, a in assigned.items() if a.activations}


def test_the_command_takes_them_as_options_or_from_a_file(tmp_path):
    source = write(tmp_path / "n.nnp")
    options = ["--quantizers", "sawb:2", "--activations", "pact:2,4", "--keep-activations", "f*"]
    found = converted_by([source, "-o", tmp_path / "a.nnp", *options])
    assert found == {"c2/conv": f"{dqa.PACT(2)}, {dqa.PACT(4)}"}
    rules = tmp_path / "rules.yaml"
    rules.write_text(
        "quantizers: sawb:2\nactivations: pact:2,4\nkeep_activations: f*\n"
        "rules:\n  - {layers: c1*, quantizers: sawb:8, activations: lsq:8}\n"
    )
    found = converted_by([source, "-o", tmp_path / "b.nnp", "--rules", rules])
    assert found == {"c1/conv": str(dqa.LSQ(8)), "c2/conv": f"{dqa.PACT(2)}, {dqa.PACT(4)}"}
    with pytest.raises(ValueError, match="--rules is given with"):
        converted_by([source, "-o", tmp_path / "c.nnp", "--rules", rules, *options])


def write_block(path):
    """A block whose first convolution and shortcut read the same, in two networks."""
    nn.random.prng.seed(3)
    x = nn.Variable((2, 1, 8, 8))
    h = F.relu(NPF.convolution(x, 4, (3, 3), pad=(1, 1), name="stem"))
    a = NPF.convolution(h, 6, (3, 3), pad=(1, 1), stride=(2, 2), name="conv1")
    b = NPF.convolution(h, 6, (1, 1), stride=(2, 2), name="shortcut")
    save_network(path, {"x": x}, {"y": NPF.affine(F.relu(F.add2(a, b)), 3, name="f")})
    nn.clear_parameters()
    return path


@quiet
@pytest.mark.parametrize("notation", ["pact:2,4,8", "emaminmax:2,3", "pact:2"])
def test_what_two_layers_read_is_quantized_once(notation, tmp_path, monkeypatch):
    """Named after the first of them, in the converted file, its training and what is deployed."""
    monkeypatch.setattr(f"{__name__}.write", write_block)
    mixing = dqa.Attention(normalize="none")
    program = trained(tmp_path, dqa.Rules("sawb:2,4", activations=notation, mixing=mixing))
    owners = ["conv1/conv:input", "f/affine:input"]
    assert [t.name for t in program.layers if not t.is_weight] == owners
    converted = {row.layer: row for row in dqa.summarize(tmp_path / "t.nnp").layers}
    result = dqa.deploy_file(tmp_path / "t.nnp", tmp_path / "d.nnp")
    assert sorted({row.layer for row in result.activations}) == owners
    deployed = {row.layer: row for row in dqa.summarize(tmp_path / "d.nnp").layers}
    for rows in (converted, deployed):
        assert rows["shortcut/conv"].activations == rows["conv1/conv"].activations != ()
        assert rows["shortcut/conv"].input_of == "conv1/conv"
        assert rows["conv1/conv"].input_of == rows["stem/conv"].input_of == ""
        assert "the same as enters conv1/conv" in rows["shortcut/conv"].entering
        assert rows["shortcut/conv"].activation_bytes == 4 * 8 * 8 * 2 // 8
    x = nn.Variable.from_numpy_array(images(1))
    with dqa.hard():
        y = program.build("main", 4, {"x": x}, batch_stat=False).outputs["y"]
    y.forward()
    z = nn.graph_def.load(str(tmp_path / "d.nnp"))(x)
    z.forward()
    np.testing.assert_array_equal(z.d, y.d)
    assert dqa.check_activations(tmp_path / "d.nnp", {"x": images(1)}).ok


def test_the_conversion_says_which_layers_share(tmp_path):
    rules = dqa.Rules("sawb:2", activations="pact:2")
    told = str(dqa.convert_file(write_block(tmp_path / "n.nnp"), tmp_path / "c.nnp", rules))
    (line,) = [line for line in told.splitlines() if line.startswith("shortcut/conv")]
    assert line.rstrip().endswith("as conv1/conv")


def test_files_whose_layers_have_their_own_stay_so(tmp_path):
    """Those converted by an earlier version."""
    rules = dqa.Rules("sawb:2", activations="pact:2")
    dqa.convert_file(write_block(tmp_path / "n.nnp"), tmp_path / "c.nnp", rules)
    plain = NetworkFile.read(tmp_path / "n.nnp")
    assigned = dict(NetworkFile.read(tmp_path / "c.nnp").assigned)
    first = assigned["conv1/conv"].activations
    assigned["shortcut/conv"] = assigned["shortcut/conv"]._replace(activations=first, input_of="")
    plain.converted(assigned).save(tmp_path / "old.nnp")
    old = Program(NetworkFile.read(tmp_path / "old.nnp"))
    old.build("main", 2)
    assert "shortcut/conv:input" in [t.name for t in old.layers]


def test_metadata_that_name_no_quantized_input_are_refused(tmp_path):
    rules = dqa.Rules("sawb:2", activations="pact:2")
    dqa.convert_file(write_block(tmp_path / "n.nnp"), tmp_path / "c.nnp", rules)
    file = NetworkFile.read(tmp_path / "c.nnp")
    for row in file.archive.metadata["layers"]:
        if "input_of" in row:
            row["input_of"] = "stem/conv/W"
    file.save(tmp_path / "bad.nnp")
    with pytest.raises(NNPError, match=r"shortcut/conv/W is that of stem/conv/W, at which nothing"):
        NetworkFile.read(tmp_path / "bad.nnp")


def test_a_network_of_a_fixed_number_of_samples_says_so(tmp_path):
    x = nn.Variable((4, 1, 8, 8))
    with dqa.quantizers(dqa.SAWB(2), activations=[dqa.Sign()]):
        h = PF.dqa_convolution(x, 2, (3, 3), name="c")
        y = PF.dqa_affine(F.reshape(F.relu(h), (4, -1)), 3, name="f")
    dqa.deploy(tmp_path / "d.nnp", {"x": x}, {"y": y}, allow_untrained=True)
    assert dqa.check_activations(tmp_path / "d.nnp", {"x": images(count=4)}).ok
    with pytest.raises(ValueError, match=r"saved for 4 samples, for x \(7, 1, 8, 8\): ") as error:
        dqa.check_activations(tmp_path / "d.nnp", {"x": images(count=7)})
    assert "\n" not in str(error.value)
