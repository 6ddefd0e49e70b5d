"""How a layer's mixture is divided among the threads of a GPU, and its scratch memory.

A block has 256 threads, in groups of ``lanes`` threads with one row each. A
long row is cut into pieces, one a block; many short ones share a block. Where
the numbers of a row lie apart (a channel axis that is not the first) threads
that follow each other take rows that do, so that they read memory that does.
"""

from __future__ import annotations

import ctypes
from typing import Dict, NamedTuple, Tuple

from nnabla_dqa.backends.kernel_args import MAX_QUANTIZERS, Kind, Op, Problem
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


class Work(ctypes.Structure):
    """``Work`` of kernels/layer.cuh: the one argument of every kernel."""

    _fields_ = [
        *[(name, _I64) for name in ("outer", "rows", "inner", "size", "piece")],
        *[(name, _I64) for name in ("step_at", "step_inside", "sample_block", "sample_count")],
        ("sample_weights", _F32 * 2),
        *[(name, _I32) for name in ("pieces", "lanes", "groups", "across", "count", "needs")],
        *[(name, _I32) for name in ("makes_grids", "add_w", "add_shares")],
        ("least", _F32),
        *[(name, _POINTER) for name in ("w", "shares", "dq", "q", "dw", "dshares", *_SCRATCH)],
        ("ops", Op * MAX_QUANTIZERS),
    ]


class Plan(NamedTuple):
    """The launches of a layer.

    ``blocks`` of the kernels that go over all weights; ``passes``: kernels that
    make the grids, in order, with their blocks; ``scratch``: where each
    scratch array begins in a memory of ``scratch_bytes`` that begins with 0s.
    """

    work: Work
    blocks: int
    passes: Tuple[Tuple[str, int], ...]
    scratch: Dict[str, int]
    scratch_bytes: int

    def place_scratch(self, address: int) -> None:
        """Tell the kernels where the scratch memory lies."""
        begin = _ceil_div(address, _ALIGNMENT) * _ALIGNMENT
        for name, offset in self.scratch.items():
            setattr(self.work, name, begin + offset)


def plan(problem: Problem) -> Plan:
    """The launches of a layer.

    Raises:
        ValueError: It is too large.
    """
    outer, rows, inner = problem.outer, problem.rows, problem.inner
    if rows == 1:
        # All of the tensor is one stretch then.
        outer, inner = 1, outer * inner
    work = Work(outer=outer, rows=rows, inner=inner, size=outer * inner)
    work.count = len(problem.ops)
    for i, op in enumerate(problem.ops):
        work.ops[i] = Op(*op)
    kinds = {Kind(op[0]) for op in problem.ops}
    _divide(work)
    work.needs = _needs(kinds)
    _plan_sample(work, Kind.SAWB_SEARCH in kinds)
    blocks = _ceil_div(rows, work.groups) * work.pieces
    passes = _passes(work, kinds, blocks)
    if max(count for _, count in passes) > _MOST_BLOCKS:
        raise ValueError(f"weights of {rows} rows of {work.size} numbers are too many for a GPU")
    scratch, size = _scratch(work, blocks)
    return Plan(work, blocks, passes, scratch, size)


def _divide(work: Work) -> None:
    """Lanes, groups and pieces."""
    work.across = int(work.outer > 1 and work.inner < _NARROW)
    if work.across:
        work.groups = _power_of_two(min(work.rows, 32))
        work.lanes = THREADS // work.groups
    else:
        wanted = _power_of_two(_ceil_div(work.size, _LEAST_NUMBERS))
        whole_warp = min(32, _power_of_two(work.size))
        work.lanes = min(max(wanted, whole_warp), THREADS)
        work.groups = THREADS // work.lanes
    row_blocks = _ceil_div(work.rows, work.groups)
    each = _ceil_div(work.size * row_blocks, work.lanes * _ENOUGH_BLOCKS)
    each = min(max(each, _LEAST_NUMBERS), _MOST_NUMBERS)
    work.piece = _ceil_div(each, AT_ONCE) * AT_ONCE * work.lanes
    work.pieces = _ceil_div(work.size, work.piece)
    stretches, work.step_inside = divmod(work.lanes, work.inner)
    work.step_at = stretches * work.rows * work.inner + work.step_inside


def _needs(kinds: set[Kind]) -> int:
    sawb = kinds & {Kind.SAWB_CLOSED, Kind.SAWB_SEARCH}
    magnitudes = sawb or kinds & {Kind.BWN, Kind.TWN}
    return (_NEEDS_MAGNITUDES if magnitudes else 0) | (_NEEDS_SQUARES if sawb else 0)


def _plan_sample(work: Work, searched: bool) -> None:
    """The sample of clip_search.py; no blocks if a row is its own sample."""
    if not searched:
        return
    work.sample_block, work.sample_count = sample_blocks(work.rows, work.size)
    weights = (1.0 / work.size, 0.0)
    if work.sample_block:
        total = work.sample_block * work.sample_count
        weights = (1.0 / total, (work.sample_block - 1.0) / total)
    work.sample_weights[:] = weights


def _passes(work: Work, kinds: set[Kind], blocks: int) -> Tuple[Tuple[str, int], ...]:
    passes = [("dqa_statistics", blocks)]
    if Kind.TWN in kinds:
        passes.append(("dqa_kept", blocks))
    if work.sample_block:
        taken = work.rows * work.sample_count
        passes.append(("dqa_sample", _ceil_div(taken, THREADS // 32)))
    if Kind.SAWB_SEARCH in kinds:
        passes.append(("dqa_search", work.rows))
    return tuple(passes)


def _scratch(work: Work, blocks: int) -> Tuple[Dict[str, int], int]:
    summary, stats, grid = 32, 32, 16
    sizes = {
        "counters": 4 * (blocks // work.pieces),
        "summaries": summary * work.rows * work.pieces if work.pieces > 1 else 0,
        "stats": stats * work.rows,
        "grids": grid * work.rows * work.count,
        "parts": 8 * work.count * blocks,
        "sample": 4 * 2 * work.rows * work.sample_count,
    }
    offsets, end = {}, 0
    for name in _SCRATCH:
        offsets[name] = end
        end += _ceil_div(sizes[name], _ALIGNMENT) * _ALIGNMENT
    # One more, so that an address that is no multiple of it can be rounded up.
    return offsets, end + _ALIGNMENT


def _ceil_div(x: int, y: int) -> int:
    return -(-x // y)


def _power_of_two(x: int) -> int:
    """The least one that is not below ``x``."""
    return 1 << max(x - 1, 0).bit_length()
