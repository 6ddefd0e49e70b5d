"""The CUDA kernels for the mixture: ``kernels/mixture.cu``.

They run in NNabla's memory and on its stream (see
:mod:`nnabla_dqa.backends.cuda.driver`); nothing is copied to the host and
nothing waits for the GPU. The scratch memory of a layer (the grids, and sums
of parts of the weights) comes from NNabla's allocator, is zeroed once and
stays with the layer: backward needs the grids of forward. Which quantizers
take part is found out by each block for itself, as the shares are on the GPU.
Attention needs no launch of its own: the first block of the statistics makes
the coefficients, the last block of the dots alpha's gradient.

Launches per layer and step: 2 forward and 1 backward for min-max, BWN and the
closed forms of SAWB; 1 more forward with TWN, whose scale needs the mean
first; 1 or 2 more (2 where a row has more than 128 to 2,048 weights) with
SAWB of 4 bits and more.

Not one launch for all layers of a step, which would need only 3 in all:
NNabla runs each layer's function by itself and gives it its output only then,
so that all mixed weights of a net would have to be kept from before the first
layer to the end of the step, in memory of ours; and whether weights or shares
have changed since would have to be found out at each call. For ResNet-18, with
21 layers, that would spare 60 of 63 launches of min-max; the host makes them
while the GPU is busy with convolutions.
"""

from __future__ import annotations

import ctypes
import functools
import importlib.util
from typing import Optional, Protocol, Sequence

import nnabla as nn
import numpy as np

from nnabla_dqa.backends.cuda import driver
from nnabla_dqa.backends.cuda.plan import (
    AT_ONCE,
    MAX_ARRAYS,
    THREADS,
    FiniteParams,
    KernelParams,
    plan_launches,
)
from nnabla_dqa.backends.kernel_args import NO_STATE, LayerSpec, StateAt

_MANY_BLOCKS = 640


class Device(Protocol):
    """What the kernels run on: :class:`Gpu`, or whatever behaves like it."""

    def reserve(self, size: int) -> None:
        """Have ``size`` bytes of memory that begin as 0."""

    def address(self) -> int:
        """Where that memory lies."""

    def launch(
        self, name: str, blocks: int, threads: int, shared: int, params: ctypes.Structure
    ) -> None:
        """See :meth:`nnabla_dqa.backends.cuda.driver.Module.launch`."""


class Gpu:
    """A GPU in NNabla's hands.

    Args:
        context: NNabla's, with the number of the GPU.

    Raises:
        CudaError: The GPU does not take the kernels. What fails here is seen
            where the layer is built; NNabla goes on after an error within a
            graph, and reports it as the cause of others.
    """

    def __init__(self, context: nn.Context) -> None:
        self._context = context
        self._module = driver.module(int(context.device_id or 0))
        self._memory = nn.NdArray((0,))

    def reserve(self, size: int) -> None:
        """See :class:`Device`; the memory is taken when it is first asked for."""
        self._memory = nn.NdArray((-(-size // 4),))
        self._memory.zero()

    def address(self) -> int:
        """See :class:`Device`."""
        # Asked anew each time: NNabla's scheduler may have moved the array in between.
        address: int = self._memory.data_ptr(np.float32, self._context)
        return address

    def launch(
        self, name: str, blocks: int, threads: int, shared: int, params: ctypes.Structure
    ) -> None:
        """See :class:`Device`."""
        self._module.launch(name, blocks, threads, shared, params)


class CudaKernels:
    """Forward and backward of one layer's mixture, on addresses of float32 arrays on a GPU.

    Args:
        spec: The layer.
        context: Of the functions around; names the GPU.
        device: Where to run instead of that GPU, for tests.

    Raises:
        CudaError: See :class:`Gpu`.
        ValueError: The layer is too large for a GPU.
    """

    reads_state_again = True

    def __init__(
        self, spec: LayerSpec, context: nn.Context, device: Optional[Device] = None
    ) -> None:
        self._plan = plan_launches(spec)
        self._params = self._plan.params
        self._attention = self._params.attention
        self._device = device or Gpu(context)
        self._device.reserve(self._plan.scratch_bytes)

    def forward(
        self, w: int, shares: Optional[int], least: float, q: int, state: StateAt = NO_STATE
    ) -> None:
        """See :meth:`nnabla_dqa.backends.cpu.CpuKernels.forward`; attention launches nothing."""
        params = self._begin(shares, state)
        params.w, params.least, params.q = w, least, q
        last = len(self._plan.passes) - 1
        for i, (name, blocks) in enumerate(self._plan.passes):
            params.makes_grids = int(i == last)
            self._launch(name, blocks)
        self._launch("dqa_mix", self._plan.blocks)

    def backward(
        self,
        w: Optional[int],
        dq: int,
        shares: Optional[int],
        least: float,
        dw: Optional[int],
        add_w: bool,
        dshares: Optional[int],
        add_shares: bool,
        da: Optional[int] = None,
        state: StateAt = NO_STATE,
    ) -> None:
        """See :meth:`nnabla_dqa.backends.cpu.CpuKernels.backward`.

        The coefficients are computed again, which takes a thread no longer than to read them.
        """
        params = self._begin(shares, state)
        self._attention.da = da
        params.dq, params.dw, params.add_w = dq, dw, int(add_w)
        if dshares is None:
            if dw is not None:
                blocks = -(-params.size * params.rows // (THREADS * AT_ONCE))
                self._launch("dqa_pass_on", blocks)
            return
        params.w, params.least = w, least
        params.dshares, params.add_shares = dshares, int(add_shares)
        slots = 4 * THREADS * (params.count + 1)
        self._launch("dqa_dots", self._plan.blocks, slots)

    def _begin(self, shares: Optional[int], state: StateAt) -> KernelParams:
        self._params.shares = shares
        own = self._attention
        own.alpha, own.temperature, own.hard, own.a = state
        self._plan.place_scratch(self._device.address())
        return self._params

    def _launch(self, name: str, blocks: int, shared: int = 0) -> None:
        self._device.launch(name, blocks, THREADS, shared, self._params)


class CudaFinite:
    """Whether all numbers of some arrays are finite, by one launch for up to 240 of them.

    Args:
        context: In float32, with the number of the GPU.
        device: Where to run instead of that GPU, for tests.

    Raises:
        CudaError: See :class:`Gpu`.
    """

    def __init__(self, context: nn.Context, device: Optional[Device] = None) -> None:
        self._context = context
        self._device = device or Gpu(context)
        self._flag = nn.NdArray((1,))
        self._params = FiniteParams()

    def begin(self, arrays: Sequence[nn.NdArray]) -> None:
        """Have them looked at; nothing waits for it."""
        self._flag.zero()
        params = self._params
        for start in range(0, len(arrays), MAX_ARRAYS):
            some = arrays[start : start + MAX_ARRAYS]
            for i, array in enumerate(some):
                params.arrays[i] = array.data_ptr(np.float32, self._context)
                params.sizes[i] = array.size
            params.count = len(some)
            params.flag = self._flag.data_ptr(np.float32, self._context)
            largest = max(array.size for array in some)
            blocks = min(max(1, -(-largest // (4 * THREADS))), _MANY_BLOCKS)
            self._device.launch("dqa_finite", blocks, THREADS, 0, params)

    def read(self) -> bool:
        """Whether they are; waits for the GPU."""
        return not self._flag.data[0]


def expected() -> bool:
    """Whether a user has what makes him expect them: NNabla's CUDA extension."""
    try:
        return importlib.util.find_spec("nnabla_ext.cuda") is not None
    except ModuleNotFoundError:
        return False


@functools.cache
def why_not() -> str:
    """Why there are no CUDA kernels, in one line; empty if they can be used."""
    if not expected():
        return "NNabla's CUDA extension is not installed"
    return driver.why_not()


def describe() -> str:
    """What is used, in a few words."""
    return "CUDA kernels, compiled by the driver"


DEVICE_KERNELS = CudaKernels
DEVICE_FINITE = CudaFinite
