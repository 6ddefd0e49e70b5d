"""The kernels have the same bits whatever compiles them, and however well."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

import nnabla_dqa as dqa
from nnabla_dqa.backends import cpu
from nnabla_dqa.backends.activation_args import ActivationSpec
from nnabla_dqa.backends.cpu_activations import CpuActivations
from nnabla_dqa.backends.kernel_args import LayerSpec

pytestmark = pytest.mark.slow

KERNELS = Path(dqa.__file__).resolve().parent / "backends" / "kernels"
FLAGS = [
    "-std=c++17",
    "-ffp-contract=off",
    "-fPIC",
    "-shared",
    "-pthread",
    "-fvisibility=hidden",
    "-w",
]
BUILDS = {
    "g++ without vectors": ["g++", "-O1", "-DDQA_NO_VECTORS"],
    "clang++": ["clang++", "-O1"],
}
SHAPES = [(5,), (7, 3, 3, 3), (33, 16, 3, 3), (129, 65, 3, 3), (132, 53), (30, 70)]


def sets(axis):
    minmax = [dqa.MinMax(bits, channel_axis=axis) for bits in (1, 2, 3, 4, 8)]
    sawb = [dqa.SAWB(bits, channel_axis=axis) for bits in (2, 3, 4, 8)]
    binary = [dqa.BWN(channel_axis=axis), dqa.TWN(channel_axis=axis), dqa.FullPrecision()]
    return [[q] for q in (*minmax, *sawb, *binary[:2])] + [minmax[1:4], minmax, sawb, binary]


def arrays(shape, quantizers, kind):
    """Values, grids and gradients of one layer, as bits."""
    rng = np.random.RandomState(0)
    w, dq = rng.randn(2, *shape).astype(np.float32)
    if kind == "NaN":
        w.flat[-1] = np.nan
    if kind == "zeros":
        w.fill(0)
    q, dw = np.empty_like(w), np.ones_like(w)
    count = len(quantizers)
    shares = rng.dirichlet(np.ones(count)).astype(np.float32)
    given = shares.ctypes.data if count > 1 else None
    dshares = np.zeros_like(shares)
    kernels = cpu.CpuKernels(LayerSpec.of(shape, quantizers))
    kernels.forward(w.ctypes.data, given, 1e-6, q.ctypes.data)
    to = dshares.ctypes.data if count > 1 else None
    kernels.backward(w.ctypes.data, dq.ctypes.data, given, 1e-6, dw.ctypes.data, True, to, False)
    found = [np.array(values, np.float32) for values in (q, kernels.grids[:], dw, dshares)]
    # A NaN is a NaN, whatever its sign.
    return [np.where(np.isnan(v), np.float32(7e33), v).view(np.int32) for v in found]


ACTIVATIONS = [
    [dqa.EMAMinMax(2), dqa.EMAMinMax(4), dqa.EMAMinMax(8)],
    [dqa.PACT(2), dqa.PACT(4), dqa.PACT(8)],
    [dqa.LSQ(2, offset=True), dqa.LSQ(4, signed=False), dqa.FullPrecision()],
    [dqa.Sign(), dqa.EMAMinMax(2), dqa.PACT(4), dqa.LSQ(8)],
]
STATE = {"range": (-0.4, 1.9, 1), "clip": (1.3,), "step": (0.3,), "offset": (0.1,)}


def activations(size, quantizers, count, is_set):
    """Values and gradients of what enters one layer, as bits."""
    rng = np.random.RandomState(0)
    x, dq = rng.randn(2, size).astype(np.float32)
    places, state = [], []
    for q in quantizers[:count]:
        own = {name: STATE[name] for name in q.state(1)}
        places.append({name: len(state) + i for i, name in enumerate(own)})
        state += [np.float32(value) * is_set for value in own.values()]
    q, dx = np.empty_like(x), np.ones_like(x)
    shares = rng.dirichlet(np.ones(count)).astype(np.float32)
    grads, dshares = [np.zeros_like(v) for v in state], np.zeros_like(shares)
    spec = ActivationSpec(size, tuple(quantizers[:count]), tuple(places), True)
    kernels = CpuActivations(spec)
    at = [v.ctypes.data for v in state]
    given, to = (shares.ctypes.data, dshares.ctypes.data) if count > 1 else (None, None)
    kernels.forward(x.ctypes.data, q.ctypes.data, given, 1e-6, at)
    targets = [(v.ctypes.data, False) for v in grads]
    back = (x.ctypes.data, dq.ctypes.data, None, (dx.ctypes.data, True), (to, False), targets)
    kernels.backward(*back)
    found = [q, dx, dshares, *grads]
    return [np.where(np.isnan(v), np.float32(7e33), v).view(np.int32) for v in found]


def results():
    layers = {}
    for size in (5, 1057, 40_001):
        for i, quantizers in enumerate(ACTIVATIONS):
            for count in (1, len(quantizers)):
                for is_set in (True, False):
                    key = size, "activations", i, count, is_set
                    layers[key] = activations(size, quantizers, count, is_set)
    for shape in SHAPES:
        for axis in (None, 0, -1) if len(shape) > 1 else (None,):
            for i, quantizers in enumerate(sets(axis)):
                for kind in ("normal", "NaN", "zeros"):
                    layers[shape, axis, i, kind] = arrays(shape, quantizers, kind)
    return layers


@pytest.mark.skipif(bool(cpu.why_not()), reason="the kernels are not compiled here")
@pytest.mark.parametrize("name", BUILDS)
def test_another_build_has_the_same_bits(name, tmp_path, monkeypatch):
    compiler, *flags = BUILDS[name]
    if shutil.which(compiler) is None:
        pytest.skip(f"there is no {compiler}")
    built = tmp_path / "_cpu.so"
    command = [compiler, *FLAGS, *flags, str(KERNELS / "cpu.cpp"), "-o", str(built)]
    subprocess.run(command, check=True)
    expected = results()
    used, other = cpu.library(), ctypes.CDLL(str(built))
    functions = ("dqa_forward", "dqa_backward", "dqa_activate", "dqa_activate_back")
    for function in functions:
        getattr(other, function).argtypes = getattr(used, function).argtypes
        getattr(other, function).restype = None
    monkeypatch.setattr(cpu, "library", lambda: other)
    for layer, values in results().items():
        for one, two in zip(values, expected[layer]):
            np.testing.assert_array_equal(one, two, err_msg=str(layer))
