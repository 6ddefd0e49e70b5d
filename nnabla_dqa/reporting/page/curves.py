"""What pictures of a training have in common: lines over epochs, their frame, their numbers."""

from __future__ import annotations

import math
from typing import Any, Iterable, Optional, Sequence

import numpy as np

from nnabla_dqa.reporting.page.run_record import RunRecord
from nnabla_dqa.reporting.page.svg import DASHES, MUTED, SERIES, SHADE, whole_ticks

Series = Sequence[Optional[float]]


def line(axis: Any, x: Sequence[float], y: Series, k: int) -> None:
    """Line ``k`` of a picture; dots where there are few points."""
    marker = "o" if len(x) < 3 else None
    axis.plot(
        x,
        gaps(y),
        color=SERIES[k % len(SERIES)],
        linestyle=DASHES[k % len(DASHES)],
        linewidth=1.6,
        marker=marker,
        markersize=4,
    )


def frame(axis: Any, record: RunRecord, name: str, tell: bool = True) -> None:
    """Labels, the hard phase, and where a line has a point that is no number."""
    axis.set_xlabel("epoch")
    axis.set_ylabel(name)
    last = max([epoch.epoch for epoch in record.epochs] or [1])
    first = min([epoch.epoch for epoch in record.epochs] or [0])
    whole_ticks(axis)
    begin = record.hard_from
    if begin is not None and begin < last:
        axis.set_xlim(left=min(first, begin))
        axis.axvspan(begin, last, color=SHADE, zorder=0, linewidth=0)
        if tell:
            place = {"xycoords": axis.get_xaxis_transform(), "va": "top", "color": MUTED}
            axis.annotate("hard phase", (begin, 0.99), (3, 0), textcoords="offset points", **place)


def plain_log(axis: Any) -> None:
    """Ticks of a logarithmic axis as plain numbers, few of them."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    axis.set_major_locator(LogLocator(numticks=6))
    axis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:g}"))
    axis.set_minor_locator(NullLocator())


def gaps(values: Series) -> np.ndarray:
    """NaN, which nothing is drawn for, where there is no finite number."""
    found = np.array([math.nan if v is None else v for v in values], np.float64)
    found[~np.isfinite(found)] = math.nan
    return found


def ends(values: Series) -> str:
    """The first and the last number, in words."""
    known = [v for v in values if v is not None]
    return f", from {known[0]:.4g} to {known[-1]:.4g}" if known else ""


def has_any(values: Iterable[Optional[float]]) -> bool:
    """Whether there is a value at all."""
    return any(value is not None for value in values)


def number(value: Optional[float]) -> str:
    """A cell of a table."""
    return "-" if value is None else f"{value:.4g}"
