"""The CUDA kernels, run on the CPU by an emulation, against the CPU's kernels."""

from __future__ import annotations

import ctypes
from pathlib import Path

import nnabla as nn
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from nnabla_dqa import BWN, SAWB, TWN, Attention, FullPrecision, MinMax
from nnabla_dqa.backends import cpu, portable
from nnabla_dqa.backends.cuda.launch import CudaFinite
from nnabla_dqa.backends.cuda.plan import (
    MAX_ARRAYS,
    FiniteParams,
    KernelParams,
    Kind,
    plan_launches,
)
from nnabla_dqa.backends.kernel_args import MAX_QUANTIZERS, AttentionArgs, LayerSpec, QuantizerOp
from tests.backends.emulation.device import OnCpu, library
from tests.backends.emulation.layer import LEAST, Layer

pytestmark = pytest.mark.slow

KINDS = {
    "minmax": lambda axis: [MinMax(b, axis) for b in (2, 4, 8, 1, 3)],
    "sawb": lambda axis: [SAWB(b, axis) for b in (2, 4, 3, 8, 5)],
    "binary": lambda axis: [
        BWN(channel_axis=axis),
        TWN(channel_axis=axis),
        FullPrecision(),
        MinMax(8, axis),
        SAWB(2, axis),
    ],
    "ternary": lambda axis: [
        TWN(channel_axis=axis),
        SAWB(4, axis),
        BWN(channel_axis=axis),
        SAWB(3, axis),
        FullPrecision(),
    ],
}
LONG = [
    ((6001,), None),
    ((2, 5001), 0),
    ((5001, 2), 1),
    ((1200, 5, 3), 1),
    ((300, 2), 0),
    ((40, 3, 70), 1),
    ((5, 1, 700), 1),
    ((3, 40, 5), -1),
]
"""Several pieces a row, several rows a block, and both; the rows contiguous, wide and narrow."""


@pytest.fixture(autouse=True)
def _needs_the_cpu_kernels():
    if cpu.why_not():
        pytest.skip(f"nothing to compare with: {cpu.why_not()}")


def check_grids(layer):
    """Min-max to the bit; sums are added up in another order than on the CPU."""
    found, expected = layer.grids()
    for k, quantizer in enumerate(layer.quantizers):
        if isinstance(quantizer, MinMax):
            np.testing.assert_array_equal(found[:, k], expected[:, k])
        elif isinstance(quantizer, SAWB) and quantizer.bits > 3:
            check_searched(layer, k)
        else:
            np.testing.assert_allclose(found[:, k], expected[:, k], rtol=1e-6, atol=0)


def check_searched(layer, k):
    """Another clip may have the same error, but for rounding; then it has to be as good."""
    found, expected = (grids[:, k] for grids in layer.grids())
    rows = layer.rows(layer.w.array).astype(np.float64)
    for r in np.flatnonzero(~np.isclose(found[:, 2], expected[:, 2], rtol=1e-6, atol=0)):
        errors = [
            clip_error(rows[r], grid.astype(np.float64), layer.spec.ops[k][1])
            for grid in (found[r], expected[r])
        ]
        scale = np.square(rows[r]).mean()
        assert abs(errors[0] - errors[1]) <= 1e-5 * scale


def clip_error(row, grid, top):
    codes = np.clip(np.rint((row - grid[3]) / max(grid[2], 1e-30)), 0, top)
    return np.square(grid[2] * codes + grid[3] - row).mean()


def check(layer, dq, shares):
    """The mixture and its gradients, to 1e-6 of their size."""
    q, by_cpu = layer.forward()
    check_grids(layer)
    parts = layer.quantized()
    some = np.ones(1) if shares is None else np.where(shares < LEAST, 0, shares)
    if shares is not None:
        some[np.argmax(shares)] = shares.max()
    expected = np.tensordot(some.astype(np.float64), parts, 1)
    size = np.abs(parts).max()
    np.testing.assert_allclose(layer.rows(q), expected, rtol=0, atol=1e-6 * size)
    if all(isinstance(x, (MinMax, FullPrecision)) for x in layer.quantizers):
        np.testing.assert_allclose(q, by_cpu, rtol=0, atol=1e-6 * size)
    if shares is None:
        return
    (dw, dshares), (_, by_cpu) = layer.backward(
        dq, np.full_like(dq, np.nan), False, np.full(shares.shape, np.nan), False
    )
    np.testing.assert_array_equal(dw, dq)
    exact = np.array([(layer.rows(dq).astype(np.float64) * part).sum() for part in parts])
    kept = some > 0
    exact[~kept] = (exact[kept] * some[kept]).sum() / some[kept].sum()
    scale = np.abs(dq).sum() * size
    np.testing.assert_allclose(dshares, exact, rtol=0, atol=1e-6 * scale)
    if all(isinstance(x, (MinMax, FullPrecision)) for x in layer.quantizers):
        np.testing.assert_allclose(dshares, by_cpu, rtol=0, atol=1e-6 * scale)


def random_shares(rng, count):
    shares = rng.dirichlet(np.ones(count)).astype(np.float32)
    if count > 2 and rng.rand() < 0.5:
        shares[rng.randint(count)] = rng.choice([0.0, 1e-8])
    return shares if count > 1 else None


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=25)
@given(
    st.integers(1, 5),
    st.lists(st.integers(1, 9), min_size=1, max_size=4),
    st.integers(-5, 3),
    st.sampled_from(["normal", "clusters", "equal", "zero", "tiny", "large"]),
    st.integers(0, 10**6),
)
@example(5, [8, 9, 3, 3], 1, "normal", 1)
def test_small_layers(kind, count, shape, axis, form, seed):
    rng = np.random.RandomState(seed)
    axis = axis if -len(shape) <= axis < len(shape) else None
    w = {
        "normal": lambda: rng.randn(*shape),
        "clusters": lambda: rng.choice([-0.5, 0.1, 0.5], shape),
        "equal": lambda: np.full(shape, 0.3),
        "zero": lambda: np.zeros(shape),
        "tiny": lambda: 1e-25 * rng.randn(*shape),
        "large": lambda: 1e25 * rng.randn(*shape),
    }[form]().astype(np.float32)
    shares = random_shares(rng, count)
    dq = rng.randn(*shape).astype(np.float32)
    check(Layer(w, KINDS[kind](axis)[:count], shares, seed), dq, shares)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("shape", "axis"), LONG)
def test_long_rows_and_many_rows(kind, shape, axis):
    rng = np.random.RandomState(len(shape))
    w = rng.standard_t(5, shape).astype(np.float32)
    shares = rng.dirichlet(np.ones(3)).astype(np.float32)
    dq = rng.randn(*shape).astype(np.float32)
    check(Layer(w, KINDS[kind](axis)[:3], shares), dq, shares)


def test_blocks_leave_their_counters_at_zero_and_results_do_not_depend_on_their_order():
    rng = np.random.RandomState(0)
    w, dq = rng.randn(2, 9001).astype(np.float32), rng.randn(2, 9001).astype(np.float32)
    shares, results = np.array([0.5, 0.3, 0.2]), []
    for seed in (0, 1000):
        layer = Layer(w, KINDS["ternary"](0)[:3], shares, seed)
        for _ in range(2):
            q, _ = layer.forward()
            (_, dshares), _ = layer.backward(dq, None, False, np.zeros(3))
            results.append(np.concatenate([q.ravel(), dshares, layer.grids()[0].ravel()]))
            assert not layer.device.read(layer.kernels._plan, "counters", np.uint32, 2).any()
    for one in results[1:]:
        np.testing.assert_array_equal(one, results[0])


@pytest.mark.parametrize("add_w", [False, True])
@pytest.mark.parametrize("add_shares", [False, True])
@pytest.mark.parametrize("wanted", ["w", "shares", "both"])
def test_gradients_are_added_or_put(add_w, add_shares, wanted):
    rng = np.random.RandomState(0)
    w, dq, before = rng.randn(3, 30, 50).astype(np.float32)
    layer = Layer(w, KINDS["minmax"](0)[:3], [0.5, 0.3, 0.2])
    layer.forward()
    dw = None if wanted == "shares" else before
    dshares = None if wanted == "w" else np.ones(3, np.float32)
    found, expected = layer.backward(dq, dw, add_w, dshares, add_shares)
    if dw is not None:
        np.testing.assert_array_equal(found[0], dq + before if add_w else dq)
    if dshares is not None:
        np.testing.assert_allclose(found[1], expected[1], rtol=1e-5)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("kind", KINDS)
def test_rows_that_are_not_finite_become_nan(kind, bad):
    w = np.random.RandomState(0).randn(4, 700).astype(np.float32)
    w[1, 300] = bad
    shares = np.array([0.4, 0.6], np.float32)
    layer = Layer(w, KINDS[kind](0)[:2], shares)
    q, _ = layer.forward()
    np.testing.assert_array_equal(np.isnan(q).all(axis=1), [False, True, False, False])
    assert not np.isnan(q[[0, 2, 3]]).any()
    (_, dshares), _ = layer.backward(np.ones_like(w), None, False, np.zeros(2))
    assert np.isnan(dshares).all()


def test_shares_of_nan_are_seen():
    w = np.random.RandomState(0).randn(9, 9).astype(np.float32)
    for shares in ([np.nan, np.nan], [0.5, np.nan], [np.nan, 0.5]):
        layer = Layer(w, KINDS["minmax"](None)[:2], shares)
        q, _ = layer.forward()
        assert np.isnan(q).all()


@pytest.mark.parametrize(("shape", "axis"), [((4003,), None), ((2, 3001), 0), ((777, 3, 2), 1)])
def test_sample_is_that_of_the_search(shape, axis):
    """The largest magnitude of each block, and another weight of it."""
    w = np.random.RandomState(1).randn(*shape).astype(np.float32)
    layer = Layer(w, [SAWB(4, axis)])
    layer.forward()
    params = layer.kernels._plan.params
    found = layer.device.read(
        layer.kernels._plan, "sample", np.float32, (params.rows, 2, params.sample_count)
    )
    rows = np.abs(layer.rows(w))
    missing = params.sample_block * params.sample_count - rows.shape[1]
    assert missing > 0
    unit = (1 / rows.max(axis=1, keepdims=True)).astype(np.float32)
    blocks = np.concatenate([rows, rows[:, :missing]], axis=1) * unit
    blocks = blocks.reshape(params.rows, params.sample_count, params.sample_block)
    largest = blocks.max(axis=2)
    other = np.where(blocks[..., 0] >= largest, blocks[..., 1], blocks[..., 0])
    np.testing.assert_array_equal(found[:, 0], largest)
    np.testing.assert_allclose(found[:, 1], other, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("kind", KINDS)
def test_one_hot_is_the_quantizer_alone(kind):
    w = np.random.RandomState(0).randn(13, 17).astype(np.float32)
    quantizers = KINDS[kind](None)
    for k, quantizer in enumerate(quantizers):
        both = [
            Layer(w, quantizers, np.eye(len(quantizers))[k]).forward()[0],
            Layer(w, [quantizer]).forward()[0],
        ]
        np.testing.assert_array_equal(*both)


@pytest.mark.parametrize("axis", [None, 0, 1])
def test_minmax_is_the_cpu_to_the_bit(axis):
    w = np.random.RandomState(0).randn(33, 65).astype(np.float32)
    for quantizer in KINDS["minmax"](axis):
        found, expected = Layer(w, [quantizer]).forward()
        np.testing.assert_array_equal(found, expected)


ATTENTIONS = [
    Attention(normalize=normalize, ddof=ddof, eps=eps)
    for normalize in ("std", "detached_std", "none")
    for ddof, eps in ((1, 1e-3), (0, 0.5))
]


@pytest.mark.parametrize("rule", ATTENTIONS, ids=str)
@pytest.mark.parametrize("count", [2, 3, 5])
@pytest.mark.parametrize(("shape", "axis"), [((40, 30), None), ((3, 2500), 0), ((9001,), None)])
def test_attention_is_that_of_the_cpu(shape, axis, count, rule):
    """The same source; the gradients that come to it differ by the order of sums."""
    rng = np.random.RandomState(count)
    w, dq = rng.randn(2, *shape).astype(np.float32)
    alpha, da = rng.randn(2, count).astype(np.float32)
    for temperature, hard in ((100.0, None), (0.8, None), (0.02, None), (0.8, 1)):
        one_hot = np.eye(count)[hard] if hard is not None else np.zeros(count)
        attention = (rule, alpha, [temperature], one_hot)
        layer = Layer(w, KINDS["minmax"](axis)[:count], attention=attention)
        q, by_cpu = layer.forward()
        a, a_of_cpu = (x.array for x in layer.a)
        np.testing.assert_array_equal(a, a_of_cpu)
        np.testing.assert_allclose(q, by_cpu, rtol=0, atol=1e-6 * np.abs(w).max())
        assert a.sum() == pytest.approx(1, abs=1e-6)
        for upstream in (None, da):
            before = np.full(count, 0.25)
            given = (dq, np.zeros_like(w), False, before, True, upstream)
            (dw, dalpha), (_, expected) = layer.backward(*given)
            np.testing.assert_array_equal(dw, dq)
            scale = np.abs(dq).sum() * np.abs(w).max() / min(temperature, 1)
            np.testing.assert_allclose(dalpha, expected, rtol=1e-5, atol=1e-6 * scale)
            assert hard is None or (dalpha == before).all()
        assert not layer.device.read(layer.kernels._plan, "counters", np.uint32, 1).any()


def test_attention_costs_no_launch():
    w = np.random.RandomState(0).randn(40, 70).astype(np.float32)
    attention = (Attention(), [0.3, 0.2, 0.1], [1.0], np.zeros(3))
    layer = Layer(w, KINDS["minmax"](None)[:3], attention=attention)
    layer.forward()
    layer.backward(w, w, False, np.zeros(3))
    assert layer.device.launched == [STATISTICS, MIX, "dqa_dots"]


STATISTICS, KEPT, SAMPLE, SEARCH, MIX = (
    f"dqa_{name}" for name in ("statistics", "kept", "sample", "search", "mix")
)
LAUNCHES = {
    "minmax": [STATISTICS, MIX],
    "binary": [STATISTICS, KEPT, MIX],
    "sawb": [STATISTICS, SAMPLE, SEARCH, MIX],
    "ternary": [STATISTICS, KEPT, SAMPLE, SEARCH, MIX],
}


@pytest.mark.parametrize("kind", LAUNCHES)
def test_launches_a_step(kind):
    w = np.random.RandomState(0).randn(40, 70).astype(np.float32)
    layer = Layer(w, KINDS[kind](None)[:3], [0.5, 0.3, 0.2])
    layer.forward()
    assert layer.device.launched == LAUNCHES[kind]
    layer.backward(w, w, False, np.zeros(3))
    assert layer.device.launched == [*LAUNCHES[kind], "dqa_dots"]


def test_the_page_counts_the_same():
    page = (Path(__file__).resolve().parents[2] / "docs" / "gpu.md").read_text("utf-8")
    for kind, row in (("minmax", "min-max; BWN"), ("binary", "with TWN"), ("sawb", "with SAWB")):
        (line,) = [line for line in page.splitlines() if line.startswith(f"| {row}")]
        forward = len(LAUNCHES[kind])
        assert line.split("|")[2:5] == [f" {forward} ", " 1 ", f" {21 * (forward + 1)} "]
    with nn.auto_forward(False):
        v = nn.Variable((4, 5), need_grad=True)
        functions = []
        portable.mixture(v, KINDS["minmax"](None)[:3], nn.Variable((1, 3))).visit(functions.append)
    assert f"is {len(functions)} functions of NNabla" in page


def test_weights_beyond_a_grid_are_an_error():
    searched = [(Kind.SAWB_SEARCH, 15.0, 0.0, 0.0)]
    assert plan_launches(LayerSpec(1, 2**31 - 1, 1, searched)).passes[-1] == (
        "dqa_search",
        2**31 - 1,
    )
    with pytest.raises(ValueError, match="4294967296 rows of 1 numbers are too many for a GPU"):
        plan_launches(LayerSpec(1, 2**32, 1, searched))


def test_layout_of_the_argument():
    sizes = library()
    assert sizes.size_of(b"Work") == ctypes.sizeof(KernelParams)
    for name, *_ in KernelParams._fields_:
        assert sizes.offset_of(name.encode()) == getattr(KernelParams, name).offset, name
    assert [sizes.size_of(name) for name in (b"Summary", b"Stats", b"Grid")] == [32, 32, 16]
    assert sizes.size_of(b"Numbers") == ctypes.sizeof(FiniteParams) <= 4096
    assert sizes.size_of(b"Attention") == ctypes.sizeof(AttentionArgs)
    assert KernelParams.ops.size == MAX_QUANTIZERS * ctypes.sizeof(QuantizerOp)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_every_number_of_many_arrays_is_looked_at(bad):
    """More arrays than one launch takes, one of them longer than all threads together."""
    context = nn.Context(["cpu:float"], "CpuCachedArray", "0")
    device = OnCpu()
    flag = CudaFinite(context, device)
    sizes = [1, 7, 700_000, *range(1, MAX_ARRAYS + 20)]
    arrays = [nn.NdArray.from_numpy_array(np.full(n, 3e38, np.float32)) for n in sizes]
    flag.begin(arrays[:3])
    assert flag.read()
    for which, place in ((0, 0), (2, 699_999), (2, 655_361)):
        arrays[which].data[place] = bad
        flag.begin(arrays[:3])
        assert not flag.read()
        arrays[which].data[place] = 0
    assert device.launched == ["dqa_finite"] * 4
    few = [*arrays[:2], *arrays[3:]]
    flag.begin(few)
    assert flag.read()
    few[-1].data[-1] = bad
    flag.begin(few)
    assert not flag.read()
    assert len(device.launched) == 8
    flag.begin([])
    assert flag.read()
