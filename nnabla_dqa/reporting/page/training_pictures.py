"""Pictures of a training: loss, scores, temperature, and attention of every layer."""

from __future__ import annotations

import math
from typing import Any, Iterable, List, Optional, Sequence, Tuple

import numpy as np

from nnabla_dqa.reporting.page.html import Markup, figure, table
from nnabla_dqa.reporting.page.run_record import RunRecord
from nnabla_dqa.reporting.page.svg import (
    BAD,
    DASHES,
    INK,
    MUTED,
    SERIES,
    SHADE,
    SMALL,
    WIDE,
    drawing,
    embedded,
    legend,
    shortened,
    whole_ticks,
)

Series = Sequence[Optional[float]]
_ROWS_AT_ONCE = 40


def losses(record: RunRecord) -> Markup:
    """The loss, with the steps before NaN or infinity ended it."""
    epochs = [epoch.epoch for epoch in record.epochs]
    values = [epoch.loss for epoch in record.epochs]
    title = "Loss"
    about = f"Mean training loss of {len(epochs)} epochs{_ends(values)}."
    with drawing() as drawn:
        axis = drawn.subplots()
        _line(axis, epochs, values, 0)
        if record.failure is not None:
            about += _failing(axis, record)
        _frame(axis, record, "training loss")
        svg = embedded(drawn, title, about)
    rows: List[Tuple[object, str]] = [(e, _number(v)) for e, v in zip(epochs, values)]
    if record.failure is not None:
        rows += [(f"step {step}", _number(v)) for step, _, v in _last_steps(record)]
    names = ["mean of the epoch", *(["last steps"] if record.failure is not None else [])]
    numbers = table("Loss by epoch", ("epoch", "loss"), rows)
    return figure(title, svg, numbers, legend=legend(names) if len(names) > 1 else "")


def scores(record: RunRecord) -> Optional[Markup]:
    """Validation scores and training accuracy; None if the run has neither."""
    accuracy = record.metric != "mean squared error"
    factor = 100.0 if accuracy else 1.0
    unit = "accuracy, %" if accuracy else record.metric
    series = [
        ("as deployed", [epoch.score for epoch in record.epochs]),
        ("mixture, as trained", [epoch.soft_score for epoch in record.epochs]),
    ]
    if accuracy:
        series.append(("training samples", [epoch.training_score for epoch in record.epochs]))
    series = [(n, [_times(v, factor) for v in vs]) for n, vs in series if _has_any(vs)]
    if not series:
        return None
    epochs = [epoch.epoch for epoch in record.epochs]
    title = "Accuracy" if accuracy else "Mean squared error"
    about = f"{title} over {len(epochs)} epochs. " + " ".join(
        f"{name}{_ends(values)}." for name, values in series
    )
    with drawing() as drawn:
        axis = drawn.subplots()
        for k, (_, values) in enumerate(series):
            _line(axis, epochs, values, k)
        _frame(axis, record, unit)
        svg = embedded(drawn, title, about)
    rows = [(e, *(_number(vs[i]) for _, vs in series)) for i, e in enumerate(epochs)]
    note = "As deployed: the target quantizers alone, on the validation data."
    names = [name for name, _ in series]
    numbers = table(f"{unit} by epoch", ("epoch", *names), rows)
    return figure(title, svg, numbers, note, legend(names))


def temperature(record: RunRecord) -> Optional[Markup]:
    """The temperature of attention; None if nothing is cooled."""
    values = [epoch.temperature for epoch in record.epochs]
    if not _has_any(values):
        return None
    epochs = [epoch.epoch for epoch in record.epochs]
    title = "Temperature of attention"
    about = (
        f"Temperature T at the end of {len(epochs)} epochs, on a logarithmic axis{_ends(values)}."
    )
    with drawing() as drawn:
        axis = drawn.subplots()
        _line(axis, epochs, values, 0)
        axis.set_yscale("log")
        _plain_log(axis.yaxis)
        _frame(axis, record, "temperature T")
        svg = embedded(drawn, title, about)
    rows = [(e, _number(v)) for e, v in zip(epochs, values)]
    return figure(title, svg, table("Temperature by epoch", ("epoch", "T"), rows))


def attention_of_target(record: RunRecord, targets: Sequence[Tuple[str, int]]) -> Markup:
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


def attention_of_layer(
    record: RunRecord, name: str, quantizers: Sequence[str], target: int
) -> Markup:
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
            _line(axis, epochs, values, k)
        _frame(axis, record, "attention", tell=False)
        axis.set_ylim(-0.04, 1.04)
        temperatures = [epoch.temperature for epoch in record.epochs]
        if _has_any(temperatures):
            right = axis.twinx()
            right.plot(epochs, _gaps(temperatures), color=MUTED, linewidth=0.9, linestyle=":")
            right.set_yscale("log")
            right.grid(visible=False)
            right.set_ylabel("T (dotted)", color=MUTED)
            _plain_log(right.yaxis)
        svg = embedded(drawn, name, about + ".")
    kept = _columns(len(epochs), _ROWS_AT_ONCE)
    cells = [(epochs[i], *(_share(_at(rows[i], k)) for k in range(count))) for i in kept]
    off = _peak(last) != target and target < count
    note = f"Attention is not on {names[target]}, which remains." if off else ""
    numbers = table(f"Attention of {name}", ("epoch", *names), cells)
    return figure(name, svg, numbers, note, legend(names))


def _line(axis: Any, x: Sequence[float], y: Series, k: int) -> None:
    marker = "o" if len(x) < 3 else None
    axis.plot(
        x,
        _gaps(y),
        color=SERIES[k % len(SERIES)],
        linestyle=DASHES[k % len(DASHES)],
        linewidth=1.6,
        marker=marker,
        markersize=4,
    )


def _frame(axis: Any, record: RunRecord, name: str, tell: bool = True) -> None:
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


def _failing(axis: Any, record: RunRecord) -> str:
    """Draw the last steps before the loss was no number; returns the words for it."""
    failure, steps = record.failure, _last_steps(record)
    assert failure is not None
    if steps:
        x = [place for _, place, _ in steps]
        marker = "o" if len(x) < 3 else None
        values = _gaps([v for *_, v in steps])
        axis.plot(x, values, marker=marker, color=SERIES[1], linestyle=DASHES[1], linewidth=1.6)
    where = steps[-1][1] if steps else float(len(record.epochs))
    if len(record.epochs) < 2:
        axis.set_xlim(0, 1.05 * max(where, 1.0))
    axis.axvline(where, color=BAD, linewidth=1.4)
    axis.annotate(
        "stopped here",
        (where, 0.5),
        (-4, 0),
        xycoords=axis.get_xaxis_transform(),
        textcoords="offset points",
        rotation=90,
        ha="right",
        va="center",
        color=BAD,
    )
    every = (*(e.loss for e in record.epochs), *(v for *_, v in steps))
    known = [v for v in every if v > 0 and math.isfinite(v)]
    if known and max(known) > 50 * min(known):
        axis.set_yscale("log")
        _plain_log(axis.yaxis)
    return f" It was stopped after {failure.get('step')} steps by NaN or infinity."


def _last_steps(record: RunRecord) -> List[Tuple[int, float, float]]:
    """Step, place in epochs, and loss of those before the failure."""
    failure = record.failure or {}
    found = [float(v) for v in failure.get("losses", [])]
    step, per_epoch = int(failure.get("step", 0)), max(1, int(failure.get("steps_per_epoch", 1)))
    numbers = range(step - len(found) + 1, step + 1)
    return [(n, n / per_epoch, value) for n, value in zip(numbers, found)]


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


def _plain_log(axis: Any) -> None:
    """Ticks of a logarithmic axis as plain numbers, few of them."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    axis.set_major_locator(LogLocator(numticks=6))
    axis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:g}"))
    axis.set_minor_locator(NullLocator())


def _gaps(values: Series) -> np.ndarray:
    found = np.array([math.nan if v is None else v for v in values], np.float64)
    found[~np.isfinite(found)] = math.nan
    return found


def _ends(values: Series) -> str:
    known = [v for v in values if v is not None]
    return f", from {known[0]:.4g} to {known[-1]:.4g}" if known else ""


def _has_any(values: Iterable[Optional[float]]) -> bool:
    return any(value is not None for value in values)


def _times(value: Optional[float], factor: float) -> Optional[float]:
    return None if value is None else value * factor


def _number(value: Optional[float]) -> str:
    return "-" if value is None else f"{value:.4g}"


def _share(value: Optional[float]) -> str:
    return "-" if value is None else f"{value:.3f}"


def _at(row: Optional[Sequence[float]], k: int) -> Optional[float]:
    return None if row is None or k >= len(row) else row[k]


def _peak(row: Sequence[float]) -> int:
    return max(range(len(row)), key=row.__getitem__)
