"""Where NNabla's Slice begins and ends, with indices that count from the front."""

from __future__ import annotations

from typing import List, NamedTuple, Sequence

from nnabla_dqa.export.errors import ExportError
from nnabla_dqa.export.network import NO_INDEX, OPEN, Call


class Cut(NamedTuple):
    """What is taken of an axis: ``start``, ``start + step``, ... before ``stop``.

    With a negative step ``stop`` may be -1: down to the first element.
    """

    start: int
    stop: int
    step: int


def cuts(call: Call, shape: Sequence[int]) -> List[Cut]:
    """What a Slice takes of each axis of an array of this shape, counted from the front.

    An axis that goes with the batch is taken whole; other slices of it fix the batch size
    (:class:`~nnabla_dqa.export.network.Network`).

    Raises:
        ExportError: NNabla itself reads beyond the array, or takes nothing.
    """
    given = zip(call.arguments["start"], call.arguments["stop"], call.arguments["step"])
    missing = len(shape) - len(call.arguments["start"])
    made = [Cut(0, size, 1) for size in shape[:missing]]
    for size, (start, stop, step) in zip(shape[missing:], given):
        made.append(Cut(0, OPEN, 1) if size == OPEN else _cut(size, start, stop, step))
    for axis, (size, cut) in enumerate(zip(shape, made)):
        if size != OPEN and not _lies_within(size, cut):
            raise ExportError(
                f"of the {size} elements of axis {axis} it takes nothing, or more than there are: "
                f"start {cut.start}, stop {cut.stop}, step {cut.step}, counted from the front"
            )
    return made


def _cut(size: int, start: int, stop: int, step: int) -> Cut:
    step = 1 if step == NO_INDEX else step
    first, end = (0, size) if step > 0 else (size - 1, -1)
    start = first if start == NO_INDEX else start + size if start < 0 else start
    stop = end if stop == NO_INDEX else stop + size if stop < 0 else stop
    return Cut(start, min(stop, size) if step > 0 else stop, step)


def _lies_within(size: int, cut: Cut) -> bool:
    if cut.step > 0:
        return 0 <= cut.start < cut.stop
    return -1 <= cut.stop < cut.start < size
