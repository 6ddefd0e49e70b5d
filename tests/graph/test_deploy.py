"""Deployed files: opened by an NNabla that has never heard of this package."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
import zipfile

import nnabla as nn
import nnabla.functions as F
import nnabla.parametric_functions as NPF
import nnabla.solvers
import numpy as np
import pytest

import nnabla_dqa as dqa
import nnabla_dqa.parametric_functions as PF

SETS = {
    "minmax": (dqa.MinMax(2), dqa.MinMax(4), dqa.MinMax(8)),
    "minmax per channel": tuple(dqa.MinMax(b, channel_axis=0) for b in (2, 4, 8)),
    "sawb": (dqa.SAWB(2), dqa.SAWB(4), dqa.SAWB(8)),
    "binary": (dqa.BWN(), dqa.TWN(), dqa.FullPrecision()),
    "ternary": (dqa.TWN(), dqa.MinMax(4), dqa.MinMax(8)),
    "plain 1-bit": (dqa.BWN(),),
}


def model(x, train=False):
    """All kinds of layers, a shared one, a float one, batch normalization and two outputs."""
    h = PF.dqa_convolution(x, 6, (3, 3), pad=(1, 1), with_bias=False, name="c1")
    h = F.relu(NPF.batch_normalization(h, batch_stat=train, name="bn"))
    h = PF.dqa_depthwise_convolution(h, (3, 3), pad=(1, 1), name="dw")
    for _ in range(2):
        h = F.tanh(PF.dqa_convolution(h, 6, (1, 1), name="shared"))
    h = PF.dqa_deconvolution(h, 4, (2, 2), stride=(2, 2), name="up")
    h = PF.dqa_depthwise_deconvolution(h, (2, 2), name="dwup")
    h = NPF.convolution(h, 3, (1, 1), name="float")
    return PF.dqa_affine(h, 5, name="fc"), F.global_average_pooling(h)


def trained(quantizers, seed=0, steps=4):
    """A net after a few updates: input, evaluation graphs (soft and hard)."""
    rng = np.random.RandomState(seed)
    x = nn.Variable.from_numpy_array(rng.randn(4, 3, 6, 6).astype(np.float32))
    with dqa.quantizers(*quantizers):
        y, _ = model(x, train=True)
        loss = F.mean(F.squared_error(y, nn.Variable.from_numpy_array(rng.randn(4, 5))))
        schedule = dqa.TemperatureSchedule(steps) if len(quantizers) > 1 else None
        solver = dqa.attach(nn.solvers.Sgd(0.01), schedule)
        solver.set_parameters(nn.get_parameters())
        for _ in range(steps):
            loss.forward()
            solver.zero_grad()
            loss.backward()
            solver.update()
        soft = model(x)
        with dqa.hard():
            hard = model(x)
    F.sink(*hard).forward()
    return x, soft, hard


def names(pair):
    return {"y": pair[0], "features": pair[1]}


@pytest.mark.parametrize("family", SETS)
@pytest.mark.parametrize("graph", ["soft", "hard"])
def test_outputs_equal_the_hard_graph_exactly_in_plain_nnabla(family, graph, tmp_path):
    x, soft, hard = trained(SETS[family])
    before = {k: (v.d.copy(), v.need_grad) for k, v in nn.get_parameters(grad_only=False).items()}
    result = dqa.deploy(
        tmp_path / "d.nnp", {"image": x}, names(soft if graph == "soft" else hard), network="net"
    )
    after = nn.get_parameters(grad_only=False)
    assert list(after) == list(before)
    for name, (value, need_grad) in before.items():
        np.testing.assert_array_equal(after[name].d, value)
        assert after[name].need_grad == need_grad

    np.savez(tmp_path / "in.npz", image=x.d)
    values = run_in_plain_nnabla(tmp_path, "d.nnp")
    for name, variable in names(hard).items():
        np.testing.assert_array_equal(values[name], variable.d)

    levels = SETS[family][0].levels
    per_channel = "per channel" in family
    assert len(result.layers) == 6
    for row in result.layers:
        w = values[f"{row.layer}/W"]
        rows = w if per_channel else [w]
        assert max(len(np.unique(part)) for part in rows) == row.values <= levels
        np.testing.assert_array_equal(w, SETS[family][0].quantize(before[f"{row.layer}/W"][0]))
    np.testing.assert_array_equal(values["float/conv/W"], before["float/conv/W"][0])
    assert not [name for name in values if "dqa" in name]
    assert result.file_bytes == (tmp_path / "d.nnp").stat().st_size


def run_in_plain_nnabla(folder, file):
    """Outputs and parameters of ``file`` in a process that cannot import this package."""
    script = """
        import sys
        sys.modules["nnabla_dqa"] = None
        import numpy as np
        import nnabla as nn
        from nnabla.utils.nnp_graph import NnpLoader
        folder, file = sys.argv[1:]
        data = np.load(folder + "/in.npz")
        network = NnpLoader(folder + "/" + file).get_network("net", batch_size=4)
        for name, value in data.items():
            network.inputs[name].d = value
        nn.forward_all(list(network.outputs.values()))
        values = {k: v.d for k, v in network.outputs.items()}

        g = nn.graph_def.load(folder + "/" + file)
        assert g.networks["net"].batch_size in (-1, 4), g.networks["net"].batch_size
        x = nn.Variable.from_numpy_array(data["image"])
        outputs = g.default_graph()(x)
        nn.forward_all(list(outputs))
        for name, v in zip(g.default_graph().outputs, outputs):
            np.testing.assert_array_equal(v.d, values[name])
        assert list(g.executors) == ["runtime"]
        values.update({k: v.d for k, v in g.get_parameters().items()})
        nn.clear_parameters()
        nn.load_parameters(folder + "/" + file)
        for k, v in nn.get_parameters(grad_only=False).items():
            np.testing.assert_array_equal(v.d, values[k])
        np.savez(folder + "/out.npz", **values)
    """
    command = [sys.executable, "-c", textwrap.dedent(script), str(folder), file]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return dict(np.load(folder / "out.npz"))


def test_choose_argmax_and_warning_by_name(tmp_path):
    x, soft, hard = trained(SETS["minmax"])
    layer = next(layer for layer in dqa.find_quantized() if layer.name == "fc/affine")
    layer.state["alpha"].d = [0.1, 0.9, 0.2]
    with pytest.warns(dqa.AttentionWarning, match="layer fc/affine: attention is on MinMax4"):
        lowest = dqa.deploy(tmp_path / "l.nnp", {"x": x}, names(soft))
    assert {row.bits for row in lowest.layers} == {2}
    result = dqa.deploy(tmp_path / "a.nnp", {"x": x}, names(soft), select="argmax")
    assert {row.layer: row.bits for row in result.layers if row.bits != 2} == {"fc/affine": 4}
    w = nn.graph_def.load(str(tmp_path / "a.nnp")).get_parameters()["fc/affine/W"].d
    np.testing.assert_array_equal(w, dqa.MinMax(4).quantize(layer.weight.d))
    with dqa.quantizers(*SETS["minmax"]), dqa.hard("argmax"):
        graph = model(x)
    with pytest.warns(dqa.AttentionWarning), pytest.raises(ValueError, match="layer fc/affine has"):
        dqa.deploy(tmp_path / "b.nnp", {"x": x}, names(graph))
    with pytest.raises(ValueError, match=r"layer c1/conv was built under dqa.hard\(\)"):
        dqa.deploy(tmp_path / "b.nnp", {"x": x}, names(hard), select="argmax")
    assert not (tmp_path / "b.nnp").exists()


def test_apply_w_is_baked_in(tmp_path):
    x = nn.Variable.from_numpy_array(np.random.RandomState(0).randn(2, 4))
    triple = dict(quantizers=SETS["minmax"], apply_w=lambda w: F.mul_scalar(w, 3.0))
    y = PF.dqa_affine(x, 5, name="a", **triple)
    y = PF.dqa_affine(y, 5, name="b", **triple)
    dqa.deploy(tmp_path / "d.nnp", {"x": x}, {"y": y}, allow_untrained=True)
    for name, v in nn.graph_def.load(str(tmp_path / "d.nnp")).get_parameters().items():
        if name.endswith("W"):
            expected = dqa.MinMax(2).quantize(3 * nn.get_parameters()[name].d)
            np.testing.assert_array_equal(v.d, expected)


def test_file_is_deflated_small_and_reproducible(tmp_path):
    x = nn.Variable((1, 64, 8, 8))
    h = x
    with dqa.quantizers(dqa.MinMax(2)):
        for i in range(4):
            h = PF.dqa_convolution(h, 64, (3, 3), pad=(1, 1), name=f"c{i}")
    first = dqa.deploy(tmp_path / "1.nnp", {"x": x}, {"y": h})
    dqa.deploy(tmp_path / "2.nnp", {"x": x}, {"y": h})
    assert (tmp_path / "1.nnp").read_bytes() == (tmp_path / "2.nnp").read_bytes()
    assert first.file_bits_per_parameter < 4
    with zipfile.ZipFile(tmp_path / "1.nnp") as archive:
        assert {i.compress_type for i in archive.infolist()} == {zipfile.ZIP_DEFLATED}
        metadata = json.loads(archive.read("nnabla_dqa.json"))
    assert metadata["kind"] == "deployed"
    assert metadata["tensors"][0]["quantizer"]["bits"] == 2
    assert metadata["format"] == 2
    assert sorted(p.name for p in tmp_path.iterdir()) == ["1.nnp", "2.nnp"]
    assert "c0/conv" in str(first)


def test_refusals_name_the_reason_and_leave_no_file(tmp_path):
    x, soft, _ = trained(SETS["minmax"])
    target = tmp_path / "d.nnp"

    def refuses(message, inputs=None, outputs=None, **options):
        with pytest.raises(ValueError, match=message):
            dqa.deploy(target, inputs or {"x": x}, outputs or names(soft), **options)
        assert not target.exists()

    refuses("select='best'", select="best")
    other = nn.Variable((1, 6))
    refuses("do not depend on the variable given as input 'z'", inputs={"x": x, "z": other})
    inner = PF.dqa_affine(other, 5, quantizers=[dqa.BWN()], name="inner")
    both = {"y": F.add2(soft[0], F.broadcast(F.reshape(inner, (1, 5)), (4, 5)))}
    refuses(r"another input, of shape \(.*6, 6\), .*inputs=\['z'\]", {"z": other}, both)
    refuses(r"inputs must be \{name: nn.Variable, ...\}; got", inputs={"x": x.d})
    refuses("'y' is the name of an input and of an output", inputs={"y": x})
    plain = NPF.affine(x, 3, name="plain")
    refuses("has no DQA layer", outputs={"y": plain})
    nn.get_parameters(grad_only=False)["bn/bn/var"].d[0, 1] = np.nan
    refuses("parameter bn/bn/var holds NaN or infinity")
    nn.get_parameters(grad_only=False)["bn/bn/var"].d[0, 1] = 1
    nn.get_parameters()["up/deconv/W"].d[0, 0, 0, 0] = np.inf
    refuses("parameter up/deconv/W holds NaN or infinity")
    with pytest.raises(ValueError, match="inputs must be"):
        dqa.deploy(target, {}, {})

    nn.clear_parameters()
    with dqa.quantizers(*SETS["minmax"]):
        untrained = model(x)
    refuses("layer c1/conv was never trained", outputs=names(untrained))
    dqa.Annealer(dqa.TemperatureSchedule(5))
    refuses("layer c1/conv was never trained", outputs=names(untrained))


def test_an_existing_file_survives_a_failure(tmp_path, monkeypatch):
    x, soft, _ = trained(SETS["plain 1-bit"])
    target = tmp_path / "d.nnp"
    dqa.deploy(target, {"x": x}, names(soft))
    before = target.read_bytes()
    monkeypatch.setattr("os.replace", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        dqa.deploy(target, {"x": x}, names(soft))
    assert target.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["d.nnp"]
    with pytest.raises(ValueError, match=r"d.onnx: the name must end in .nnp"):
        dqa.deploy(tmp_path / "d.onnx", {"x": x}, names(soft))
    with pytest.raises(OSError, match=r"cannot write .*d.nnp: there is no folder .*nowhere"):
        dqa.deploy(tmp_path / "nowhere" / "d.nnp", {"x": x}, names(soft))


def test_fixed_batch_size(tmp_path):
    x = nn.Variable((4, 6))
    h = PF.dqa_affine(x, 6, name="a", quantizers=[dqa.BWN()])
    y = F.reshape(h, (2, 12))
    with pytest.raises(ValueError, match="variable_batch_size=False"):
        dqa.deploy(tmp_path / "d.nnp", {"x": x}, {"y": y})
    dqa.deploy(tmp_path / "d.nnp", {"x": x}, {"y": y}, variable_batch_size=False)
    assert nn.graph_def.load(str(tmp_path / "d.nnp"))(x).shape == (2, 12)


def test_embedding(tmp_path):
    x = nn.Variable.from_numpy_array(np.array([[1.0, 2, 3], [4, 5, 6]]))
    y = PF.dqa_embed(x, 10, 4, name="e", quantizers=[dqa.MinMax(2)])
    y.forward()
    dqa.deploy(tmp_path / "d.nnp", {"x": x}, {"y": y})
    y2 = nn.graph_def.load(str(tmp_path / "d.nnp"))(x)
    y2.forward()
    np.testing.assert_array_equal(y.d, y2.d)


def test_training_graph_saves_with_nnablas_own_save(tmp_path):
    """The whole training graph, loss and regularizer included, without this package."""
    from nnabla.utils.save import save

    rng = np.random.RandomState(0)
    x = nn.Variable.from_numpy_array(rng.randn(4, 3, 6, 6).astype(np.float32))
    t = nn.Variable.from_numpy_array(rng.randn(4, 5).astype(np.float32))
    with dqa.quantizers(*SETS["minmax"]):
        y, features = model(x, train=True)
    loss = F.add2(F.mean(F.squared_error(y, t)), dqa.regularizer(5))
    dqa.Annealer(dqa.TemperatureSchedule(10))()
    network = {
        "name": "net",
        "batch_size": 4,
        "outputs": {"y": y, "features": features, "loss": loss},
        "names": {"image": x, "t": t},
    }
    executor = {"name": "r", "network": "net", "data": ["image", "t"], "output": ["y", "loss"]}
    save(str(tmp_path / "t.nnp"), {"networks": [network], "executors": [executor]})
    nn.forward_all([y, features, loss])
    np.savez(tmp_path / "in.npz", image=x.d, t=t.d)
    script = """
        import sys
        sys.modules["nnabla_dqa"] = None
        import numpy as np
        import nnabla as nn
        from nnabla.utils.nnp_graph import NnpLoader
        folder = sys.argv[1]
        network = NnpLoader(folder + "/t.nnp").get_network("net", batch_size=4)
        for name, value in np.load(folder + "/in.npz").items():
            network.inputs[name].d = value
        found = {k: network.variables[k] for k in ("y", "features", "loss")}
        nn.forward_all(list(found.values()))
        np.savez(folder + "/out.npz", **{k: v.d for k, v in found.items()})
    """
    command = [sys.executable, "-c", textwrap.dedent(script), str(tmp_path)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    values = np.load(tmp_path / "out.npz")
    for name, v in (("y", y), ("features", features), ("loss", loss)):
        # Live, attention is computed in double.
        np.testing.assert_allclose(values[name], v.d, rtol=1e-5, atol=1e-6)


def test_tied_weights_are_refused_by_name(tmp_path):
    """A file cannot hold float and quantized weights under one name; it must not mix them up."""
    x = nn.Variable.from_numpy_array(np.array([[1.0, 2, 3]]))
    h = PF.dqa_embed(x, 7, 5, quantizers=[dqa.MinMax(2)], name="e")
    y = F.affine(h, F.transpose(nn.get_parameters()["e/embed/W"], (1, 0)), base_axis=2)
    with pytest.raises(ValueError, match="parameter e/embed/W is used both quantized and as it is"):
        dqa.deploy(tmp_path / "d.nnp", {"x": x}, {"y": y}, variable_batch_size=False)
    assert list(tmp_path.iterdir()) == []


def test_apply_w_may_have_parameters_of_its_own(tmp_path):
    x = nn.Variable.from_numpy_array(np.random.RandomState(0).randn(2, 8))
    y = PF.dqa_affine(
        x, 5, quantizers=[dqa.MinMax(2)], apply_w=lambda w: PF.weight_normalization(w, dim=1)
    )
    y.forward()
    result = dqa.deploy(tmp_path / "d.nnp", {"x": x}, {"y": y})
    assert result.layers[0].values <= 4
    y2 = nn.graph_def.load(str(tmp_path / "d.nnp"))(x)
    y2.forward()
    np.testing.assert_array_equal(y.d, y2.d)


@pytest.mark.parametrize("scope", ["net", "outer/net", "dqa", "fc_dqa"])
def test_scopes_and_names(scope, tmp_path):
    """The schedule in the root, the model in a scope; names that look like the state's."""
    x = nn.Variable.from_numpy_array(np.random.RandomState(0).randn(2, 8))
    with nn.parameter_scope(scope):
        y = PF.dqa_affine(x, 5, quantizers=SETS["minmax"], name="l_dqa")
    annealer = dqa.Annealer(dqa.TemperatureSchedule(3))
    with nn.parameter_scope(scope), pytest.raises(ValueError, match="never trained"):
        dqa.deploy(tmp_path / "d.nnp", {"x": x}, {"y": y})
    for _ in range(3):
        annealer()
    with nn.parameter_scope(scope):
        result = dqa.deploy(tmp_path / "d.nnp", {"x": x}, {"y": y})
    assert result.parameters == 45
    assert "bits per parameter" in str(result)
    parameters = nn.graph_def.load(str(tmp_path / "d.nnp")).get_parameters()
    assert sorted(parameters) == ["l_dqa/affine/W", "l_dqa/affine/b"]


def test_training_graphs_and_soft_layers_warn(tmp_path):
    x, soft, _ = trained(SETS["minmax"])
    with dqa.quantizers(*SETS["minmax"]):
        training = model(x, train=True)
    with pytest.warns(UserWarning, match="the graph uses batch statistics, as in training"):
        dqa.deploy(tmp_path / "t.nnp", {"x": x}, names(training))
    for layer in dqa.find_quantized():
        layer.state["hard"].d = 0
    dqa.find_quantized()[0].state["temperature"].d = 10
    with pytest.warns(dqa.AttentionWarning, match="layer c1/conv still mixes quantizers: MinMax2"):
        dqa.deploy(tmp_path / "s.nnp", {"x": x}, names(soft))
