"""Statistics of batch normalization computed anew, against float64 numpy."""

from __future__ import annotations

import numpy as np
import pytest

import nnabla_dqa as dqa
from nnabla_dqa.nnp.bn_reestimate import estimate_statistics
from nnabla_dqa.nnp.convert import convert_file
from nnabla_dqa.nnp.deploy import deploy_file
from nnabla_dqa.nnp.file import NetworkFile
from nnabla_dqa.nnp.live import Program
from nnabla_dqa.nnp_format.archive import Archive
from tests.nnp.networks import Net, outputs, small, train


def stack():
    """Two normalized affine layers and one of pixels."""
    net = Net()
    x = net.input("x", 5)
    h = net.affine(x, 4, "a/W")
    h = net.call("Tanh", [net.normalize(h, "bn1")], (4,))
    h = net.normalize(net.affine(h, 3, "b/W"), "bn2")
    net.executor("net", ["x"], [h])
    return net


def batches(count, size, *shape, seed=1, shift=0.0):
    rng = np.random.RandomState(seed)
    return [{"x": (rng.randn(size, *shape) + shift).astype(np.float32)} for _ in range(count)]


@pytest.fixture
def file(tmp_path):
    convert_file(stack().save(tmp_path / "m.nnp"), tmp_path / "c.nnp", "minmax:2,4,8")
    return train(tmp_path / "c.nnp", tmp_path / "t.nnp")


def affine(x, parameters, name, bits):
    w = dqa.MinMax(bits).quantize(parameters[f"{name}/W"].array).astype(np.float64)
    return x @ w + parameters[f"{name}/b"].array


def expected_statistics(parameters, data, bits):
    """Moments pooled over all samples; each batch is normalized by its own statistics."""
    first = [affine(x["x"].astype(np.float64), parameters, "a", bits) for x in data]
    gamma, beta = (parameters[f"bn1/{n}"].array.astype(np.float64) for n in ("gamma", "beta"))
    second = []
    for h in first:
        normal = (h - h.mean(0)) / np.sqrt(h.var(0) + 1e-4)
        second.append(affine(np.tanh(normal * gamma + beta), parameters, "b", bits))
    result = {}
    for name, values in (("bn1", first), ("bn2", second)):
        pooled = np.concatenate(values)
        result[f"{name}/mean"] = pooled.mean(0)
        result[f"{name}/var"] = pooled.var(0, ddof=1)
    return result


@pytest.mark.parametrize("select", ["target", "argmax"])
@pytest.mark.parametrize(("count", "size"), [(1, 8), (6, 4)])
def test_moments_of_all_samples(file, select, count, size):
    parameters = file.archive.parameters
    alphas = {name: p.array for name, p in parameters.items() if name.endswith("alpha")}
    for alpha in alphas.values():
        alpha[:] = [0, 0, 1]
    data = batches(count, size, 5, shift=3.0)
    program = Program(file)
    before = {name: p.array.tobytes() for name, p in program.arrays().items()}
    found = estimate_statistics(program, "net", data, size, select)
    expected = expected_statistics(parameters, data, 8 if select == "argmax" else 2)
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        assert found[name].dtype == np.float32
        assert found[name].shape == parameters[name].array.shape
        np.testing.assert_allclose(found[name].ravel(), array, rtol=2e-4, atol=1e-5, err_msg=name)
    assert {name: p.array.tobytes() for name, p in program.arrays().items()} == before


def test_a_large_mean_does_not_swallow_the_variance(tmp_path):
    net = Net()
    x = net.input("x", 2, 3, 3)
    net.affine(net.normalize(x, "bn"), 2, "fc/W")
    file = NetworkFile.read(net.save(tmp_path / "m.nnp"))
    data = batches(5, 4, 2, 3, 3, shift=3e3)
    found = estimate_statistics(Program(file), "net", data, 4)
    pooled = np.concatenate([b["x"] for b in data]).astype(np.float64)
    mean, var = pooled.mean((0, 2, 3)), pooled.var((0, 2, 3), ddof=1)
    np.testing.assert_allclose(found["bn/mean"].ravel(), mean, rtol=1e-6)
    # On oneDNN the mean of each mini-batch comes in float32.
    np.testing.assert_allclose(found["bn/var"].ravel(), var, rtol=1e-4)


def test_a_network_without_normalization_has_none(tmp_path):
    net = Net()
    net.affine(net.input("x", 5), 2, "fc/W")
    file = NetworkFile.read(net.save(tmp_path / "m.nnp"))
    assert estimate_statistics(Program(file), "net", batches(2, 4, 5), 4) == {}


def test_deploying_with_samples_changes_the_statistics_alone(file, tmp_path):
    data = batches(3, 8, 5)
    deploy_file(tmp_path / "t.nnp", tmp_path / "d.nnp")
    result = deploy_file(tmp_path / "t.nnp", tmp_path / "s.nnp", samples=iter(data))
    plain, anew = (Archive.read(tmp_path / n).parameters for n in ("d.nnp", "s.nnp"))
    expected = expected_statistics(file.archive.parameters, data, 2)
    for name, (array, _) in anew.items():
        if name in expected:
            np.testing.assert_allclose(array.ravel(), expected[name], rtol=2e-4, atol=1e-5)
        else:
            np.testing.assert_array_equal(array, plain[name].array)
    assert not [m for m in result.messages if "no batch normalization" in m]
    deploy_file(tmp_path / "t.nnp", tmp_path / "f.nnp", samples=data, fold=True)
    for name, array in outputs(tmp_path / "s.nnp", "net", data[0], 8).items():
        fold = outputs(tmp_path / "f.nnp", "net", data[0], 8)[name]
        np.testing.assert_allclose(fold, array, rtol=1e-4, atol=1e-4 * np.abs(array).max())


def test_samples_that_do_not_fit_are_refused(file, tmp_path):
    for data in ([], [{"y": np.zeros((2, 5), np.float32)}], [{}]):
        with pytest.raises(ValueError) as caught:
            deploy_file(tmp_path / "t.nnp", tmp_path / "d.nnp", samples=data)
        assert "\n" not in str(caught.value)
    assert not (tmp_path / "d.nnp").exists()


def test_with_whole_the_samples_are_those_of_the_network_that_runs(tmp_path):
    net = small()
    first = net.definition.network[0]
    net.begin("train")
    h = net.normalize(net.conv(net.input("image", 2, 4, 4), 3, "c/conv/W", bias=False), "bn")
    net.affine(h, 4, "fc/affine/W")
    net.definition.optimizer.add(name="opt", network_name="train")
    # As Neural Network Console writes it: the trained network first.
    networks = [net.network, first]
    copies = [type(n).FromString(n.SerializeToString()) for n in networks]
    del net.definition.network[:]
    net.definition.network.extend(copies)
    convert_file(net.save(tmp_path / "m.nnp"), tmp_path / "c.nnp")
    found = []
    for name, whole in (("d.nnp", False), ("w.nnp", True)):
        deploy_file(
            tmp_path / "c.nnp",
            tmp_path / name,
            whole=whole,
            allow_untrained=True,
            samples=batches(3, 4, 2, 4, 4),
        )
        found.append(Archive.read(tmp_path / name).parameters["bn/mean"].array)
    np.testing.assert_array_equal(found[0], found[1])
