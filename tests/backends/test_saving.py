"""Graphs with fused mixtures are saved as portable ones, by whatever way NNabla has."""

from __future__ import annotations

import functools

import nnabla as nn
import nnabla.functions as F
import nnabla.parametric_functions as PF
import numpy as np
import pytest
from nnabla.core.graph_def import ProtoGraphGenerator
from nnabla.utils.save import save

import nnabla_dqa as dqa
from nnabla_dqa.backends import mixture as mix
from nnabla_dqa.backends.nnabla_hooks import NNABLA_VERSIONS, install_hooks


def build(backend, mixture=None):
    nn.clear_parameters()
    rng = np.random.RandomState(0)
    x = nn.Variable((2, 3, 8, 8))
    mixture = mixture or dqa.quantizers(dqa.MinMax(2), dqa.MinMax(4), dqa.MinMax(8))
    with dqa.backend(backend), mixture:
        h = PF.dqa_convolution(x, 4, (3, 3), name="conv", rng=rng)
        h = F.relu(PF.dqa_affine(h, 5, name="fc", rng=rng))
        # The same weights once more.
        with nn.parameter_scope("again"):
            y = PF.dqa_affine(h, 5, name="fc", rng=rng)
            y = F.add2(y, PF.dqa_affine(F.tanh(h), 5, name="fc", rng=rng))
    return x, y


def definition(y, **names):
    graph = nn.graph_def.create_graph_from_variable("net", y, names={"y": y, **names})
    return graph.as_proto(include_parameter=False).network[0]


def mixtures():
    yield dqa.quantizers(dqa.SAWB(2), dqa.SAWB(4))
    yield dqa.quantizers(dqa.BWN(), dqa.TWN(), dqa.FullPrecision())
    yield dqa.quantizers(dqa.MinMax(2, channel_axis=0))
    yield dqa.quantizers(dqa.MinMax(1), dqa.MinMax(2), mixing=dqa.BinaryRelax())


@pytest.mark.filterwarnings("ignore::nnabla_dqa.AttentionWarning")
@pytest.mark.parametrize("number", range(5))
def test_the_definition_is_that_of_the_portable_graph(number):
    texts = []
    for backend in ("fused", "portable"):
        mixture = None if number == 4 else list(mixtures())[number]
        x, y = build(backend, mixture)
        network = definition(y, x=x)
        assert not any(f.type.startswith(("DQA", "Callback")) for f in network.function)
        texts.append([(f.type, len(f.input), len(f.output)) for f in network.function])
    assert sorted(texts[0]) == sorted(texts[1])


def saves_and_computes_the_same(path):
    x, y = build("fused")
    x.d = np.random.RandomState(1).randn(*x.shape)
    y.forward()
    expected = y.d.copy()
    contents = {
        "networks": [{"name": "net", "batch_size": 2, "outputs": {"y": y}, "names": {"x": x}}],
        "executors": [{"name": "runtime", "network": "net", "data": ["x"], "output": ["y"]}],
    }
    save(str(path), contents, include_params=True)
    loaded_x = nn.Variable.from_numpy_array(x.d)
    loaded = nn.graph_def.load(str(path))(loaded_x)
    loaded.forward()
    np.testing.assert_array_equal(loaded.d, expected)


@pytest.mark.parametrize("suffix", [".nnp", ".nntxt"])
def test_a_saved_training_graph_loads_and_computes_the_same(suffix, tmp_path):
    saves_and_computes_the_same(tmp_path / f"net{suffix}")


@pytest.fixture
def generator(monkeypatch):
    """NNabla's class as it is before anything has been done to it."""
    write = ProtoGraphGenerator.__call__
    while hasattr(write, "__wrapped__"):
        write = write.__wrapped__
    monkeypatch.setattr(ProtoGraphGenerator, "__call__", write)
    return ProtoGraphGenerator


def spy(generator, wraps, seen):
    """Another package that wraps NNabla's class as one does."""
    write = generator.__call__

    def spied(self, function):
        seen.append(function.info.type_name)
        return write(self, function)

    generator.__call__ = functools.wraps(write)(spied) if wraps else spied


@pytest.mark.parametrize("wraps", [True, False], ids=["functools.wraps", "plain"])
@pytest.mark.parametrize("order", ["before", "after", "both"])
def test_other_wrappers_of_nnablas_class(order, wraps, generator, tmp_path):
    """They see what is written; and what is written can be loaded."""
    seen = []
    if order != "after":
        spy(generator, wraps, seen)
    build("fused")
    if order != "before":
        spy(generator, wraps, seen)
    saves_and_computes_the_same(tmp_path / "net.nnp")
    assert "Convolution" in seen


def test_a_hook_that_was_taken_away_is_made_again(generator, tmp_path):
    write = generator.__call__
    build("fused")
    generator.__call__ = write
    saves_and_computes_the_same(tmp_path / "net.nnp")


def test_the_graph_trains_on_after_it_was_saved():
    """Saving changes neither what is computed nor what registered parameters are."""
    x, y = build("fused")
    x.d = np.random.RandomState(1).randn(*x.shape)
    results = []
    for saved in (False, True):
        if saved:
            definition(y, x=x)
        parameters = nn.get_parameters()
        for v in parameters.values():
            v.grad.zero()
        y.forward(clear_no_need_grad=True)
        y.backward(1, clear_buffer=True)
        results.append({name: v.g.copy() for name, v in parameters.items()})
    assert set(results[0]) == set(results[1])
    for name, g in results[0].items():
        assert np.abs(g).max() > 0, name
        np.testing.assert_array_equal(results[1][name], g)


def test_a_mixture_that_is_an_output_keeps_its_name():
    w = nn.parameter.get_parameter_or_create("w", (3, 4), np.ones((3, 4)), True)
    with dqa.backend("fused"):
        q = mix(w, [dqa.MinMax(2)], None)
    network = definition(q)
    assert "y" in [name for f in network.function for name in f.output]
    assert "w" in [name for f in network.function for name in f.input]


@pytest.mark.parametrize("wrapped", [False, True])
def test_the_hook_is_never_made_twice(wrapped, generator):
    install_hooks()
    if wrapped:
        spy(generator, True, [])
    once = generator.__call__
    install_hooks()
    assert generator.__call__ is once


def test_the_hooks_were_read_from_this_version_of_nnabla():
    """With another one the sources named in the module have to be read again."""
    assert nn.__version__ in NNABLA_VERSIONS


def test_other_graphs_are_saved_as_ever():
    install_hooks()
    x = nn.Variable((2, 3))
    y = PF.affine(x, 4)
    graph = nn.graph_def.create_graph_from_variable("net", y, names={"x": x, "y": y})
    assert [f.type for f in graph.as_proto().network[0].function] == ["Affine"]


def test_saving_in_auto_forward_mode_takes_nothing_from_the_live_graph():
    x, y = build("fused")
    x.d = np.random.RandomState(1).randn(*x.shape)
    results = []
    for saved in (False, True):
        for v in nn.get_parameters().values():
            v.grad.zero()
        y.forward()
        with nn.auto_forward():
            if saved:
                definition(y, x=x)
        y.backward(1)
        results.append({name: v.g.copy() for name, v in nn.get_parameters().items()})
    for name, g in results[0].items():
        np.testing.assert_array_equal(results[1][name], g)
        assert np.abs(g).max() > 0
