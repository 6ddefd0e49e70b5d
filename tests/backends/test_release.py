"""Mixed weights that are freed as soon as backward has used them."""

from __future__ import annotations

import nnabla as nn
import nnabla.functions as F
import nnabla.parametric_functions as PF
import numpy as np
import pytest

import nnabla_dqa as dqa
from nnabla_dqa.backends.fused import quantizers_of

QUANTIZERS = [dqa.MinMax(2), dqa.MinMax(4), dqa.MinMax(8)]


def net(backend):
    nn.clear_parameters()
    rng = np.random.RandomState(0)
    x = nn.Variable.from_numpy_array(rng.randn(2, 3, 8, 8))
    with dqa.backend(backend), dqa.quantizers(*QUANTIZERS):
        h = F.relu(PF.dqa_convolution(x, 4, (3, 3), name="a", rng=rng))
        h = F.relu(PF.dqa_convolution(h, 4, (3, 3), name="b", rng=rng))
        y = PF.dqa_affine(h, 5, name="c", rng=rng)
    return F.sum(F.mul2(y, y))


def gradients(loss, **options):
    for v in nn.get_parameters().values():
        v.grad.zero()
    loss.forward(clear_no_need_grad=True)
    loss.backward(clear_buffer=True, **options)
    return {name: v.g.copy() for name, v in nn.get_parameters().items()}


def test_gradients_stay_the_same_for_every_update():
    loss = net("fused")
    expected = gradients(loss)
    release = dqa.release_mixtures(loss, 0)
    for _ in range(3):
        found = gradients(loss, function_post_hook=release)
        for name, g in expected.items():
            np.testing.assert_array_equal(found[name], g)
            assert np.abs(g).max() > 0


@pytest.mark.parametrize("hooked", [True, False])
def test_mixed_weights_are_gone_when_the_next_layer_is_reached(hooked):
    """Without the hook those of all layers are there to the end."""
    loss = net("fused")
    mixed = []
    loss.visit(lambda f: mixed.extend(f.outputs[:1] if quantizers_of(f) else []))
    release = dqa.release_mixtures(loss, 0) if hooked else lambda f: None
    held = []

    def look(function):
        release(function)
        if function.info.type_name in ("Convolution", "Affine"):
            held.append(sum(not q.data.clear_called for q in mixed))

    gradients(loss, function_post_hook=look)
    assert held == ([2, 1, 0] if hooked else [3, 3, 3])


def test_weights_that_are_used_more_than_once():
    """They go after the last use; where two may be the last, NNabla decides."""
    results = {}
    for hooked in (False, True):
        nn.clear_parameters()
        rng = np.random.RandomState(0)
        x = nn.Variable.from_numpy_array(rng.randn(2, 4))
        w = nn.parameter.get_parameter_or_create("w", (4, 4), rng.randn(4, 4), True)
        v = nn.parameter.get_parameter_or_create("v", (4, 4), rng.randn(4, 4), True)
        with dqa.backend("fused"):
            q = dqa.backends.mixture(w, QUANTIZERS[:1], None)
            r = dqa.backends.mixture(v, QUANTIZERS[:1], None)
        y = F.affine(F.relu(F.affine(x, q)), q)
        # Two of the same rank.
        z = F.add2(F.affine(x, r), F.affine(F.identity(x), r))
        loss = F.sum(F.add2(F.mul2(y, y), F.mul2(z, z)))
        options = {"function_post_hook": dqa.release_mixtures(loss, 0)} if hooked else {}
        for _ in range(2):
            results[hooked] = gradients(loss, **options)
    for name, g in results[False].items():
        np.testing.assert_array_equal(results[True][name], g)
        assert np.abs(g).max() > 0


def test_graphs_without_mixtures_and_portable_ones():
    x = nn.Variable.from_numpy_array(np.ones((2, 3)), need_grad=True)
    y = F.sum(F.relu(x))
    x.grad.zero()
    y.forward()
    y.backward(clear_buffer=True, function_post_hook=dqa.release_mixtures(y, 0))
    assert (x.g == 1).all()
    loss = net("portable")
    expected = gradients(loss)
    found = gradients(loss, function_post_hook=dqa.release_mixtures(loss, 0))
    for name, g in expected.items():
        np.testing.assert_array_equal(found[name], g)


def test_small_nets_have_no_hook():
    loss = net("fused")
    mixed = []
    loss.visit(lambda f: mixed.extend(f.outputs[:1] if quantizers_of(f) else []))
    count = sum(q.size for q in mixed)
    assert dqa.release_mixtures(loss) is None
    assert dqa.release_mixtures(loss, count + 1) is None
    assert dqa.release_mixtures(loss, count) is not None


def test_persistent_mixed_weights_are_kept():
    """They were marked to be read after the update."""
    loss = net("fused")
    mixed = []
    loss.visit(lambda f: mixed.extend(f.outputs[:1] if quantizers_of(f) else []))
    mixed[0].persistent = True
    loss.forward()
    expected = mixed[0].d.copy()
    gradients(loss, function_post_hook=dqa.release_mixtures(loss, 0))
    np.testing.assert_array_equal(mixed[0].d, expected)
