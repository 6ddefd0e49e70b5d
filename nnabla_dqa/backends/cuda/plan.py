"""How a layer's mixture is divided among the threads of a GPU, and its scratch memory.

A block has 256 threads, in groups of ``lanes`` threads with one row each. A
long row is cut into pieces, one a block; many short ones share a block. Where
the numbers of a row lie apart (a channel axis that is not the first) threads
that follow each other take rows that do, so that they read memory that does.
"""

from __future__ import annotations

import ctypes
from typing import Dict, NamedTuple, Optional, Tuple

from nnabla_dqa.backends.kernel_args import (
    MAX_QUANTIZERS,
    AttentionArgs,
    Kind,
    LayerSpec,
    QuantizerOp,
)
from nnabla_dqa.quantization.clip_search import sample_blocks

THREADS = 256
AT_ONCE = 4

_ENOUGH_BLOCKS = 1024
"""They keep a large GPU busy; there are more only where a thread had too much to do."""
_LEAST_NUMBERS, _MOST_NUMBERS = 8, 64
"""Numbers of a row for each thread. Float32 sums of more would lose digits."""
_NARROW = 32
"""Stretches shorter than this are read by threads of several rows."""

_ALIGNMENT = 16
_MOST_BLOCKS = 2**31 - 1
_NEEDS_MAGNITUDES, _NEEDS_SQUARES = 1, 2


_I64, _I32, _F32, _POINTER = ctypes.c_int64, ctypes.c_int32, ctypes.c_float, ctypes.c_void_p

_SCRATCH = ("counters", "summaries", "stats", "grids", "parts", "sample")


class KernelParams(ctypes.Structure):
    """``Work`` of kernels/layer.cuh: the one argument of every kernel."""

    _fields_ = [
        *[(name, _I64) for name in ("outer", "rows", "inner", "size", "piece")],
        *[(name, _I64) for name in ("step_at", "step_inside", "sample_block", "sample_count")],
        ("sample_weights", _F32 * 2),
        *[(name, _I32) for name in ("pieces", "lanes", "groups", "across", "count", "needs")],
        *[(name, _I32) for name in ("makes_grids", "add_w", "add_shares")],
        ("least", _F32),
        *[(name, _POINTER) for name in ("w", "shares", "dq", "q", "dw", "dshares", *_SCRATCH)],
        ("attention", AttentionArgs),
        ("ops", QuantizerOp * MAX_QUANTIZERS),
    ]


MAX_ARRAYS = 240
"""``MAX_ARRAYS`` of kernels/layer.cuh: an argument has at most 4 KiB."""


class FiniteParams(ctypes.Structure):
    """``Numbers`` of kernels/layer.cuh: the argument of ``dqa_finite``."""

    _fields_ = [
        ("arrays", _POINTER * MAX_ARRAYS),
        ("sizes", _I64 * MAX_ARRAYS),
        ("flag", _POINTER),
        ("count", _I64),
    ]


class LaunchPlan(NamedTuple):
    """The launches of a layer.

    ``blocks`` of the kernels that go over all weights; ``passes``: kernels that
    make the grids, in order, with their blocks; ``scratch``: where each
    scratch array begins in a memory of ``scratch_bytes`` that begins with 0s;
    ``shares``: where the coefficients lie there, if attention makes them.
    """

    params: KernelParams
    blocks: int
    passes: Tuple[Tuple[str, int], ...]
    scratch: Dict[str, int]
    scratch_bytes: int
    shares: Optional[int] = None

    def place_scratch(self, address: int) -> None:
        """Tell the kernels where the scratch memory lies."""
        begin = _ceil_div(address, _ALIGNMENT) * _ALIGNMENT
        for name, offset in self.scratch.items():
            setattr(self.params, name, begin + offset)
        if self.shares is not None:
            self.params.shares = begin + self.shares


def plan_launches(spec: LayerSpec) -> LaunchPlan:
    """The launches of a layer.

    Raises:
        ValueError: It is too large.
    """
    outer, rows, inner = spec.outer, spec.rows, spec.inner
    if rows == 1:
        # All of the tensor is one stretch then.
        outer, inner = 1, outer * inner
    params = KernelParams(outer=outer, rows=rows, inner=inner, size=outer * inner)
    params.count = len(spec.ops)
    params.attention = spec.attention_args()
    for i, op in enumerate(spec.ops):
        params.ops[i] = QuantizerOp(*op)
    kinds = {Kind(op[0]) for op in spec.ops}
    _divide(params)
    params.needs = _needs(kinds)
    _plan_sample(params, Kind.SAWB_SEARCH in kinds)
    blocks = _ceil_div(rows, params.groups) * params.pieces
    passes = _passes(params, kinds, blocks)
    if max(count for _, count in passes) > _MOST_BLOCKS:
        raise ValueError(f"weights of {rows} rows of {params.size} numbers are too many for a GPU")
    scratch, size = _scratch(params, blocks)
    shares = size if spec.attention is not None else None
    if shares is not None:
        size += 4 * params.count
    # One more, so that an address that is no multiple of it can be rounded up.
    return LaunchPlan(params, blocks, passes, scratch, size + _ALIGNMENT, shares)


def _divide(params: KernelParams) -> None:
    """Lanes, groups and pieces."""
    params.across = int(params.outer > 1 and params.inner < _NARROW)
    if params.across:
        params.groups = _power_of_two(min(params.rows, 32))
        params.lanes = THREADS // params.groups
    else:
        wanted = _power_of_two(_ceil_div(params.size, _LEAST_NUMBERS))
        whole_warp = min(32, _power_of_two(params.size))
        params.lanes = min(max(wanted, whole_warp), THREADS)
        params.groups = THREADS // params.lanes
    row_blocks = _ceil_div(params.rows, params.groups)
    each = _ceil_div(params.size * row_blocks, params.lanes * _ENOUGH_BLOCKS)
    each = min(max(each, _LEAST_NUMBERS), _MOST_NUMBERS)
    params.piece = _ceil_div(each, AT_ONCE) * AT_ONCE * params.lanes
    params.pieces = _ceil_div(params.size, params.piece)
    stretches, params.step_inside = divmod(params.lanes, params.inner)
    params.step_at = stretches * params.rows * params.inner + params.step_inside


def _needs(kinds: set[Kind]) -> int:
    sawb = kinds & {Kind.SAWB_CLOSED, Kind.SAWB_SEARCH}
    magnitudes = sawb or kinds & {Kind.BWN, Kind.TWN}
    return (_NEEDS_MAGNITUDES if magnitudes else 0) | (_NEEDS_SQUARES if sawb else 0)


def _plan_sample(params: KernelParams, searched: bool) -> None:
    """The sample of clip_search.py; no blocks if a row is its own sample."""
    if not searched:
        return
    params.sample_block, params.sample_count = sample_blocks(params.rows, params.size)
    weights = (1.0 / params.size, 0.0)
    if params.sample_block:
        total = params.sample_block * params.sample_count
        weights = (1.0 / total, (params.sample_block - 1.0) / total)
    params.sample_weights[:] = weights


def _passes(params: KernelParams, kinds: set[Kind], blocks: int) -> Tuple[Tuple[str, int], ...]:
    passes = [("dqa_statistics", blocks)]
    if Kind.TWN in kinds:
        passes.append(("dqa_kept", blocks))
    if params.sample_block:
        taken = params.rows * params.sample_count
        passes.append(("dqa_sample", _ceil_div(taken, THREADS // 32)))
    if Kind.SAWB_SEARCH in kinds:
        passes.append(("dqa_search", params.rows))
    return tuple(passes)


def _scratch(params: KernelParams, blocks: int) -> Tuple[Dict[str, int], int]:
    summary, stats, grid = 32, 32, 16
    sizes = {
        "counters": 4 * (blocks // params.pieces),
        "summaries": summary * params.rows * params.pieces if params.pieces > 1 else 0,
        "stats": stats * params.rows,
        "grids": grid * params.rows * params.count,
        "parts": 8 * params.count * blocks,
        "sample": 4 * 2 * params.rows * params.sample_count,
    }
    offsets, end = {}, 0
    for name in _SCRATCH:
        offsets[name] = end
        end += _ceil_div(sizes[name], _ALIGNMENT) * _ALIGNMENT
    return offsets, end


def _ceil_div(x: int, y: int) -> int:
    return -(-x // y)


def _power_of_two(x: int) -> int:
    """The least one that is not below ``x``."""
    return 1 << max(x - 1, 0).bit_length()
