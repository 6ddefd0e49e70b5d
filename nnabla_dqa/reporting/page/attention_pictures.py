"""Pictures of attention over training: all layers at once, each by itself, and the temperature."""

from __future__ import annotations

import math
from typing import Any, List, Optional, Sequence, Tuple

import numpy as np

from nnabla_dqa.reporting.page.curves import (
    Series,
    ends,
    frame,
    gaps,
    has_any,
    line,
    number,
    plain_log,
)
from nnabla_dqa.reporting.page.html import Markup, figure, table
from nnabla_dqa.reporting.page.run_record import RunRecord
from nnabla_dqa.reporting.page.svg import (
    INK,
    MUTED,
    SERIES,
    SMALL,
    WIDE,
    drawing,
    embedded,
    legend,
    shortened,
    whole_ticks,
)

_ROWS_AT_ONCE = 40


def temperature(record: RunRecord) -> Optional[Markup]:
    """The temperature of attention; None if nothing is cooled."""
    values = [epoch.temperature for epoch in record.epochs]
    if not has_any(values):
        return None
    epochs = [epoch.epoch for epoch in record.epochs]
    title = "Temperature of attention"
    about = (
        f"Temperature T at the end of {len(epochs)} epochs, on a logarithmic axis{ends(values)}."
    )
    with drawing() as drawn:
        axis = drawn.subplots()
        line(axis, epochs, values, 0)
        axis.set_yscale("log")
        plain_log(axis.yaxis)
        frame(axis, record, "temperature T")
        svg = embedded(drawn, title, about)
    rows = [(e, number(v)) for e, v in zip(epochs, values)]
    return figure(title, svg, table("Temperature by epoch", ("epoch", "T"), rows))


def of_target(record: RunRecord, targets: Sequence[Tuple[str, int]]) -> Markup:
    """All layers in one picture: how much of the attention is on what remains.

    Args:
        record: With attention.
        targets: The layers, in order, and the index of the target of each.
    """
    title = "Attention on the target quantizer, all layers"
    columns = _columns(len(record.epochs))
    shares = {
        name: [None if a is None or k >= len(a) else a[k] for a in record.attention[name]]
        for name, k in targets
    }
    last = [values[-1] for values in shares.values() if values[-1] is not None]
    on = sum(value > 0.5 for value in last)
    about = (
        f"One row for each of {len(shares)} tensors, one column for each epoch; the darker, the "
        f"more of the attention is on the quantizer that is deployed. At the end it is more than "
        f"half in {on} of {len(last)}."
    )
    height = 0.9 + 0.17 * len(shares)
    with drawing((WIDE[0], height)) as drawn:
        axis = drawn.subplots()
        for row, values in enumerate(shares.values()):
            _cells(
                axis, row, [values[i] for i in columns], [record.epochs[i].epoch for i in columns]
            )
        axis.set_ylim(len(shares) - 0.5, -0.5)
        axis.set_yticks(range(len(shares)), [shortened(name) for name in shares], fontsize=9)
        axis.grid(visible=False)
        axis.set_xlim(record.epochs[0].epoch - 1, record.epochs[-1].epoch)
        if record.hard_from is not None:
            axis.axvline(record.hard_from, color=INK, linewidth=1, linestyle=":")
        axis.set_xlabel("epoch (dotted: the hard phase begins)" if record.hard_from else "epoch")
        whole_ticks(axis)
        svg = embedded(drawn, title, about)
    head = ("layer", *(f"epoch {record.epochs[i].epoch}" for i in _columns(len(record.epochs), 12)))
    rows = [
        (name, *(_share(values[i]) for i in _columns(len(record.epochs), 12)))
        for name, values in shares.items()
    ]
    return figure(title, svg, table("Attention on the target quantizer", head, rows))


def of_layer(record: RunRecord, name: str, quantizers: Sequence[str], target: int) -> Markup:
    """The shares of a layer's quantizers, with the temperature."""
    epochs = [epoch.epoch for epoch in record.epochs]
    rows = record.attention[name]
    count = max(len(row) for row in rows if row is not None)
    names = [quantizers[k] if k < len(quantizers) else f"quantizer {k + 1}" for k in range(count)]
    last = next(row for row in reversed(rows) if row is not None)
    about = f"Attention of {name} over {len(epochs)} epochs. At the end: " + ", ".join(
        f"{n} {share:.3f}" for n, share in zip(names, last)
    )
    with drawing(SMALL, (0.19, 0.24, 0.81, 0.96)) as drawn:
        axis = drawn.subplots()
        for k in range(count):
            values = [None if row is None or k >= len(row) else row[k] for row in rows]
            line(axis, epochs, values, k)
        frame(axis, record, "attention", tell=False)
        axis.set_ylim(-0.04, 1.04)
        temperatures = [epoch.temperature for epoch in record.epochs]
        if has_any(temperatures):
            right = axis.twinx()
            right.plot(epochs, gaps(temperatures), color=MUTED, linewidth=0.9, linestyle=":")
            right.set_yscale("log")
            right.grid(visible=False)
            right.set_ylabel("T (dotted)", color=MUTED)
            plain_log(right.yaxis)
        svg = embedded(drawn, name, about + ".")
    kept = _columns(len(epochs), _ROWS_AT_ONCE)
    cells = [(epochs[i], *(_share(_at(rows[i], k)) for k in range(count))) for i in kept]
    off = _peak(last) != target and target < count
    note = f"Attention is not on {names[target]}, which remains." if off else ""
    numbers = table(f"Attention of {name}", ("epoch", *names), cells)
    return figure(name, svg, numbers, note, legend(names))


def _cells(axis: Any, row: int, values: Series, ends: Sequence[int]) -> None:
    """A row of the heat map; cells that look the same are one."""
    spans: List[Tuple[float, float]] = []
    colours: List[float] = []
    begin = ends[0] - 1.0
    for value, end in zip(values, ends):
        level = 0.0 if value is None or not math.isfinite(value) else round(float(value) * 20) / 20
        if colours and colours[-1] == level:
            spans[-1] = (spans[-1][0], end - spans[-1][0])
        else:
            spans.append((begin, end - begin))
            colours.append(level)
        begin = float(end)
    from matplotlib.colors import to_rgba

    kept = [(span, level) for span, level in zip(spans, colours) if level > 0]
    if kept:
        axis.broken_barh(
            [span for span, _ in kept],
            (row - 0.42, 0.84),
            facecolors=[to_rgba(SERIES[0], level) for _, level in kept],
            linewidth=0,
        )


def _columns(count: int, most: int = 120) -> List[int]:
    """Indices of at most so many of the epochs, the last one among them."""
    if count <= most:
        return list(range(count))
    return sorted({round(i) for i in np.linspace(0, count - 1, most)})


def _share(value: Optional[float]) -> str:
    return "-" if value is None else f"{value:.3f}"


def _at(row: Optional[Sequence[float]], k: int) -> Optional[float]:
    return None if row is None or k >= len(row) else row[k]


def _peak(row: Sequence[float]) -> int:
    return max(range(len(row)), key=row.__getitem__)
