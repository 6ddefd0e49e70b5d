"""A layer whose mixture the emulated CUDA kernels and the CPU's kernels compute."""

from __future__ import annotations

import ctypes

import numpy as np

from nnabla_dqa.backends import cpu
from nnabla_dqa.backends.cuda.launch import CudaKernels
from nnabla_dqa.backends.kernel_args import NO_STATE, AttentionSpec, LayerSpec, QuantizerOp
from nnabla_dqa.quantization.encoding import RowLayout
from tests.backends.emulation.device import OnCpu

LEAST = 1e-6


class Guarded:
    """A float32 array between numbers that must neither be read nor be written."""

    def __init__(self, content):
        self._all = np.full(np.size(content) + 16, np.nan, np.float32)
        self.array = self._all[9 : 9 + np.size(content)].reshape(np.shape(content))
        self.array[...] = content

    @property
    def address(self):
        return self.array.ctypes.data

    def check(self):
        size = self.array.size
        assert np.isnan(self._all[:9]).all()
        assert np.isnan(self._all[9 + size :]).all()


class Layer:
    """A layer's kernels of both kinds, and their last results."""

    def __init__(self, w, quantizers, shares=None, seed=0, attention=None):
        """With ``attention``, a rule and its alpha, temperature and hard, there are no shares."""
        self.w, self.quantizers = Guarded(w), quantizers
        rule, *state = attention or (None,)
        self.state = [Guarded(np.asarray(x, np.float32)) for x in state]
        self.shares = None if shares is None else Guarded(np.asarray(shares, np.float32))
        self.spec = LayerSpec.of(w.shape, quantizers, rule and AttentionSpec.of(rule))
        self.device = OnCpu(seed)
        self.kernels = CudaKernels(self.spec, None, self.device)
        self.cpu = cpu.CpuKernels(self.spec)

    @property
    def state_at(self):
        return [x.address for x in self.state]

    def forward(self):
        q = [Guarded(np.full_like(self.w.array, 7.0)) for _ in range(2)]
        self.a = [Guarded(np.zeros(len(self.quantizers))) for _ in range(2)]
        for kernels, to, a in zip((self.kernels, self.cpu), q, self.a):
            shares = self.shares.address if self.shares else None
            state = (*self.state_at, a.address) if self.state else NO_STATE
            kernels.forward(self.w.address, shares, LEAST, to.address, state)
            to.check()
            a.check()
        return q[0].array, q[1].array

    def backward(self, dq, dw=None, add_w=False, dshares=None, add_shares=False, da=None):
        """Of the shares, or of alpha, where ``da`` is what comes to the coefficients."""
        dq, found = Guarded(dq), []
        da = None if da is None else Guarded(da)
        for kernels in (self.kernels, self.cpu):
            targets = [None if x is None else Guarded(x) for x in (dw, dshares)]
            addresses = [None if x is None else x.address for x in targets]
            again = self.state and kernels.reads_state_again
            kernels.backward(
                self.w.address if dshares is not None else None,
                dq.address,
                self.shares.address if self.shares else None,
                LEAST,
                addresses[0],
                add_w,
                addresses[1],
                add_shares,
                None if da is None else da.address,
                (*self.state_at, None) if again else NO_STATE,
            )
            found.append([None if x is None else x.array for x in targets])
            [x.check() for x in targets if x is not None]
        return found

    def grids(self):
        """a, b, scale, offset of the emulated kernels and of the CPU's: (rows, K, 4)."""
        shape = (self.spec.rows, len(self.quantizers), 4)
        found = self.device.read(self.kernels._plan, "grids", np.float32, shape)
        return found, np.array(self.cpu.grids, np.float32).reshape(shape)

    def rows(self, array):
        axes = [q.axis for q in self.quantizers if q.axis is not None]
        return RowLayout.of(self.w.array.shape, axes[0] if axes else None).to_rows(array)

    def quantized(self):
        """Q_k(w) by the CPU's codes for the emulated grids, float64, as rows."""
        rows, found = self.rows(self.w.array), []
        for k, op in enumerate(self.spec.ops):
            codes = np.empty_like(rows)
            for r, grid in enumerate(self.grids()[0][:, k]):
                arguments = [rows[r].ctypes.data, codes[r].ctypes.data, rows.shape[1]]
                given = (ctypes.c_float * 4)(*grid)
                cpu.library().dqa_encode(
                    ctypes.byref(QuantizerOp(*op)), ctypes.byref(given), *arguments
                )
            scale, offset = self.grids()[0][:, k, 2:].astype(np.float64).T[..., None]
            found.append(scale * codes + offset)
        return np.stack(found)
