"""The CUDA kernels for activations, run on the CPU by an emulation, against the CPU's kernels."""

from __future__ import annotations

import ctypes

import nnabla as nn
import nnabla.functions as F
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import nnabla_dqa as dqa
from nnabla_dqa.backends import cpu, dispatch, portable
from nnabla_dqa.backends.activation_args import ActivationSpec, why_no_kernel
from nnabla_dqa.backends.cpu_activations import CpuActivations
from nnabla_dqa.backends.cuda import activations as cuda
from nnabla_dqa.backends.cuda import driver as cuda_driver
from nnabla_dqa.backends.cuda import launch
from nnabla_dqa.backends.fused_activations import NAME, make_function
from nnabla_dqa.backends.kernel_args import NO_STATE, AttentionArgs, AttentionSpec
from nnabla_dqa.mixing.mixture import HARD
from tests.backends.activation_layers import SETS, data, known, mixture_of, state_of
from tests.backends.emulation.device import OnCpu, library
from tests.backends.emulation.layer import Guarded
from tests.backends.test_cuda_driver import CUDNN, MEMORY, driver  # noqa: F401

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(bool(cpu.why_not()), reason=cpu.why_not()),
]
LEAST = 1e-6
RNG = np.random.RandomState


class Both:
    """A layer's kernels of both kinds on the same numbers."""

    def __init__(self, x, quantizers, values=None, shares=None, index=None, rule=None, seed=0):
        """With ``rule`` attention makes the shares, of its state among the ``values``."""
        self.mixture = mixture_of(quantizers, rule)
        self.x, values = Guarded(x), values or {}
        states = self.mixture.state_layout(x.shape, "activation")
        self.arrays, self.paths, places = [], [], []
        alone = slice(None) if index is None else slice(index, index + 1)
        for own in self.mixture.quantizer_states({p: p for p in states})[alone] or [{}]:
            names = {n: p for n, p in own.items() if index is None or n != "first"}
            for path in names.values():
                if path not in self.paths:
                    self.paths.append(path)
                    entry = states[path].initial
                    content = np.reshape(values.get(path, entry), entry.shape)
                    self.arrays.append(Guarded(np.asarray(content, np.float32)))
            places.append({n: self.paths.index(p) for n, p in names.items()})
        self.quantizers = self.mixture.quantizers[alone]
        self.shares = None if shares is None else Guarded(np.float32(shares))
        attention = AttentionSpec.of(rule) if rule is not None else None
        self.state = []
        if rule is not None:
            wanted = [values[name] for name in ("alpha", "temperature", HARD)]
            self.state = [Guarded(np.asarray(v, np.float32)) for v in wanted]
        places = places if any(places) else [{}] * len(self.quantizers)
        spec = ActivationSpec(x.size, self.quantizers, tuple(places), index is None, attention)
        self.device = OnCpu(seed)
        self.kernels = [cuda.CudaActivations(spec, None, self.device), CpuActivations(spec)]

    def forward(self):
        """q of the emulation and of the CPU; the coefficients too where attention makes them."""
        found, self.a = [], []
        for kernels in self.kernels:
            q, a = Guarded(np.full_like(self.x.array, 7)), Guarded(np.zeros(len(self.quantizers)))
            shares = None if self.shares is None else self.shares.address
            state = (*(s.address for s in self.state), a.address) if self.state else NO_STATE
            arrays = [v.address for v in self.arrays]
            kernels.forward(self.x.address, q.address, shares, LEAST, arrays, state)
            q.check()
            a.check()
            found.append(q.array)
            self.a.append(a.array)
        return found

    def backward(self, dq, add=False, da=None, wanted=("x", "shares", "arrays")):
        """By both: the gradients to x, to the shares or alpha, and to the arrays."""
        dq, found = Guarded(dq), []
        da = None if da is None else Guarded(np.float32(da))
        for kernels in self.kernels:
            few = [np.full(v.array.shape, 0.25) for v in self.arrays]
            targets = [Guarded(np.full(self.x.array.shape, 0.5)), Guarded(np.full(32, 0.5))]
            targets += [Guarded(v) for v in few]
            names = ["x", "shares", *["arrays"] * len(few)]
            to = [(t.address if n in wanted else None, add) for t, n in zip(targets, names)]
            up = None if da is None else da.address
            mixes = self.shares is not None or self.state
            to_shares = to[1] if mixes else (None, False)
            kernels.backward(self.x.address, dq.address, up, to[0], to_shares, to[2:])
            for target in targets:
                target.check()
            found.append([t.array for t in targets])
        return found


def check(both, dq, add=False, da=None):
    """Values, gradients to x and running ranges to the bit; sums to 1e-6 of their terms."""
    q, by_cpu = both.forward()
    np.testing.assert_array_equal(q, by_cpu)
    np.testing.assert_array_equal(*both.a)
    found, expected = both.backward(dq, add, da)
    np.testing.assert_array_equal(found[0], expected[0])
    step = max([1.0, *(np.abs(v.array).max() for v in both.arrays)])
    size = 2e-6 * np.abs(dq).sum() * max(np.abs(q).max(), np.abs(both.x.array).max(), step) * 128
    for path, one, other in zip(["shares", *both.paths], found[1:], expected[1:]):
        exact = path.endswith("range") or np.array_equal(one, other)
        np.testing.assert_allclose(one, other, 1e-5, 0 if exact else size, err_msg=path)


def values_of(seed, quantizers, shape, rule=None):
    return known(seed, mixture_of(quantizers, rule), shape)


@pytest.mark.parametrize("name", SETS)
@settings(max_examples=10, deadline=None)
@given(
    st.integers(1, 4),
    st.lists(st.integers(1, 9), min_size=1, max_size=4),
    st.booleans(),
    st.booleans(),
    st.booleans(),
    st.integers(0, 10**6),
)
def test_small_layers(name, count, shape, is_set, relu, add, seed):
    quantizers = sorted(SETS[name][:count], key=lambda q: q.bits)
    values = values_of(seed, quantizers, shape) if is_set or name_has_means(quantizers) else {}
    shares = RNG(seed).dirichlet(np.ones(len(quantizers))) if len(quantizers) > 1 else None
    both = Both(data(seed, shape, relu), quantizers, values, shares, seed=seed)
    check(both, data(seed + 1, shape), add)


def name_has_means(quantizers):
    """Whether first values are means, which are added up in another order."""
    return any(isinstance(q, dqa.LSQ) for q in quantizers)


@pytest.mark.parametrize("trains", [True, False])
@pytest.mark.parametrize("name", SETS)
def test_many_blocks(name, trains):
    shape, quantizers = (3, 7001), sorted(SETS[name], key=lambda q: q.bits)
    values = values_of(0, quantizers, shape)
    if not trains:
        both = Both(data(0, shape), quantizers, values, index=0)
        np.testing.assert_array_equal(*both.forward())
        return
    shares = RNG(0).dirichlet(np.ones(len(quantizers)))
    both = Both(data(0, shape), quantizers, values, shares)
    check(both, data(1, shape), add=True)
    assert both.device.launched == ["dqa_prepare", "dqa_activate", "dqa_activate_back"]


@pytest.mark.parametrize("shape", [(11,), (3, 7001)])
def test_first_values_come_from_the_mini_batch(shape):
    for name in ("minmax", "pact"):
        check(Both(data(0, shape), SETS[name], None, [0.5, 0.3, 0.2]), data(1, shape))
    for quantizer in (dqa.LSQ(4), dqa.LSQ(3, signed=False)):
        both = Both(data(0, shape), [quantizer], {})
        q, by_cpu = both.forward()
        # A mean in another order is another step, by a rounding.
        np.testing.assert_allclose(q, by_cpu, rtol=1e-5, atol=1e-6)
        found, expected = both.backward(data(1, shape))
        first = both.paths.index("0/first") + 2
        np.testing.assert_allclose(found[first], expected[first], rtol=1e-6)
        assert found[first][0, 0] > 0


@pytest.mark.parametrize("temperature", [10.0, 0.5])
@pytest.mark.parametrize("hard", [None, 1])
@pytest.mark.parametrize("normalize", ["std", "detached_std", "none"])
def test_attention_is_that_of_the_cpu(normalize, hard, temperature):
    rule, shape = dqa.Attention(normalize=normalize), (3, 3001)
    for name in ("minmax", "pact", "lsq", "mixed"):
        quantizers = sorted(SETS[name][:3], key=lambda q: q.bits)
        values = values_of(0, quantizers, shape, rule)
        values["temperature"] = [temperature]
        values[HARD] = np.eye(3)[hard] if hard is not None else np.zeros(3)
        both = Both(data(0, shape), quantizers, values, rule=rule)
        check(both, data(1, shape), True, [1, -2, 0.5])
        if hard is not None:
            found, _ = both.backward(data(1, shape))
            np.testing.assert_array_equal(found[1][:3], 0)


def test_quantizers_of_no_share_take_no_part():
    both = Both(
        data(0, (40, 50)), SETS["pact"], values_of(0, SETS["pact"], (40, 50)), [0.4, 0, 0.6]
    )
    check(both, data(1, (40, 50)))
    found, _ = both.backward(data(1, (40, 50)))
    gradients = found[1]
    assert gradients[1] == pytest.approx(0.4 * gradients[0] + 0.6 * gradients[2], rel=1e-4)


@pytest.mark.parametrize("count", [4, 5, 8, 13, 14])
def test_many_quantizers(count):
    """Offsets are added up in the order of the CPU's sums."""
    shape, bits = (5, 70), range(2, 9)
    some = [
        [dqa.LSQ(b, offset=True) for b in bits] + [dqa.PACT(b) for b in bits],
        [dqa.EMAMinMax(b) for b in bits] + [dqa.LSQ(b) for b in bits],
    ]
    for quantizers in (sorted(found[:count], key=lambda q: q.bits) for found in some):
        shares = RNG(count).dirichlet(np.ones(count))
        values = values_of(0, quantizers, shape)
        check(Both(data(0, shape), quantizers, values, shares), data(1, shape), add=True)


def test_more_quantizers_have_no_kernel_on_a_gpu():
    many = [dqa.PACT(2)] * 15
    assert why_no_kernel((3,), many) == ""
    assert why_no_kernel((3,), many, "cuda") == (
        "15 quantizers are more than the kernels take on a GPU, 14"
    )


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("size", [30, 9001])
@pytest.mark.parametrize("is_set", [True, False])
def test_nan_and_infinity_are_seen_in_all_numbers(is_set, size, bad):
    for quantizers in SETS.values():
        x = data(0, (size,))
        x[size // 2] = bad
        values = values_of(0, quantizers[:1], x.shape) if is_set else None
        q, by_cpu = Both(x, quantizers[:1], values).forward()
        assert np.isnan(q).all()
        assert np.isnan(by_cpu).all()


def test_ranges_without_data_are_no_number_when_evaluated():
    q, _ = Both(data(0, (40,)), SETS["minmax"], None, index=0).forward()
    assert np.isnan(q).all()


@pytest.mark.parametrize("wanted", ["x", "shares", "arrays"])
def test_gradients_that_are_not_wanted_are_left_alone(wanted):
    both = Both(
        data(0, (40, 3)), SETS["pact"], values_of(0, SETS["pact"], (40, 3)), [0.5, 0.3, 0.2]
    )
    both.forward()
    found, expected = both.backward(data(1, (40, 3)), wanted=(wanted,))
    for i, name in enumerate(["x", "shares", *["arrays"] * len(both.paths)]):
        np.testing.assert_allclose(found[i], expected[i], rtol=1e-5, atol=1e-5)
        untouched = (found[i] == (0.25 if name == "arrays" else 0.5)).all()
        assert untouched == (name != wanted)


def test_results_depend_neither_on_the_order_of_blocks_nor_on_what_was_before():
    shape, results = (3, 9001), []
    quantizers = sorted(SETS["mixed"], key=lambda q: q.bits)
    for seed in (0, 1000):
        values = values_of(0, quantizers, shape)
        both = Both(data(0, shape), quantizers, values, [0.4, 0.3, 0.2, 0.1], seed=seed)
        for _ in range(2):
            q, _ = both.forward()
            found, _ = both.backward(data(1, shape))
            results.append(np.concatenate([q.ravel(), *[v.ravel() for v in found]]))
    for one in results[1:]:
        np.testing.assert_array_equal(one, results[0])


def test_nothing_of_the_size_of_the_activations_is_kept():
    sizes = []
    for size in (10**6, 10**7):
        both = Both(data(0, (size,)), SETS["minmax"], None, [0.5, 0.3, 0.2])
        sizes.append(both.device.size)
    assert sizes[1] <= 0.02 * 10**7
    assert sizes[1] < 10 * sizes[0]


def test_without_arrays_that_may_be_unset_one_block_prepares():
    both = Both(data(0, (9001,)), [dqa.Sign()])
    assert not both.kernels[0]._params.looks
    check(both, data(1, (9001,)))


def test_layout_of_the_argument():
    sizes = library()
    assert sizes.size_of(b"ActivationWork") == ctypes.sizeof(cuda.ActivationParams) <= 4096
    for name, *_ in cuda.ActivationParams._fields_:
        offset = getattr(cuda.ActivationParams, name).offset
        assert sizes.activation_offset_of(name.encode()) == offset, name
    assert sizes.size_of(b"Activated") <= cuda.ACTIVATED_BYTES
    assert sizes.size_of(b"Attention") == ctypes.sizeof(AttentionArgs)


@pytest.fixture
def gpu(driver, monkeypatch):  # noqa: F811
    """Contexts of CUDA whose GPU is the CPU, with the CPU's memory."""
    monkeypatch.setattr(launch.Gpu, "__init__", lambda self, context: _on_cpu(self))
    monkeypatch.setattr("nnabla_dqa.backends.fused_activations.activation_kernels", lambda _: make)
    return driver


def _on_cpu(gpu):
    gpu._context, gpu._module = MEMORY, cuda_driver.module(0)


def make(spec, context):
    return cuda.CudaActivations(spec, MEMORY)


@pytest.mark.parametrize("name", SETS)
def test_a_graph_computes_what_the_portable_one_does(gpu, name):
    mixture = mixture_of(SETS[name])
    shape = (4, 60)
    x, upstream = data(0, shape), data(1, shape)
    found = []
    for fused in (True, False):
        v = nn.Variable.from_numpy_array(x, need_grad=True)
        state = state_of(mixture, shape, known(0, mixture, shape))
        with nn.auto_forward(False), nn.context_scope(MEMORY):
            if fused:
                function, inputs = make_function(v, mixture, state, None, None, MEMORY)
                q, a = function(*inputs)
            else:
                a = mixture.coefficients(state)
                q = portable.activations(
                    v, mixture.quantizers, a, mixture.quantizer_states(state), False
                )
            end = F.sum(F.mul2(q, nn.Variable.from_numpy_array(upstream)))
            end = F.add2(end, F.sum(F.mul2(a, a)))
        wanted = {"x": v, **{p: u for p, u in state.items() if u.need_grad}}
        for u in wanted.values():
            u.g = 0
        for _ in range(2):
            end.forward()
            end.backward()
        found.append([q.d.copy(), a.d.copy(), *(u.g.copy() for u in wanted.values())])
    names = ["q", "a", *wanted]
    for path, one, other in zip(names, *found):
        if path.endswith("first"):
            continue
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-3, err_msg=path)
    assert gpu.depth() == 0


def test_what_keeps_a_gpu_from_them_is_said_where_the_layer_is_built(driver):  # noqa: F811
    with nn.context_scope(CUDNN):
        assert dispatch.backend_of([dqa.PACT(2)], (3,), tensor="activation") == "fused"
    driver.fail(b"cuModuleLoadDataEx", 218)
    mixture = mixture_of(SETS["pact"])
    x = nn.Variable((4, 5))
    state = state_of(mixture, x.shape)
    with nn.context_scope(CUDNN), nn.auto_forward(False):
        with dqa.backend("fused"), pytest.raises(dqa.BackendError, match="line 7 bad"):
            dispatch.activations(x, mixture, state)
        found = dispatch.backend_of([dqa.PACT(2)], (3,), tensor="activation")
    assert found.startswith("portable: on cuda: cuModuleLoadDataEx")
    dispatch._refusals.clear()


def test_a_context_of_cudnn_gets_them(gpu):
    mixture = mixture_of(SETS["minmax"])
    x = nn.Variable((4, 5))
    with nn.context_scope(CUDNN), nn.auto_forward(False), dqa.backend("fused"):
        function = dispatch._activation_function(x, mixture, state_of(mixture, x.shape), None, None)
    assert function[0].name == NAME
    assert isinstance(function[0]._activations, cuda.CudaActivations)
