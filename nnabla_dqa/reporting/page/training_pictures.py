"""Pictures of a training: loss and scores over the epochs."""

from __future__ import annotations

import math
from typing import Any, List, Optional, Tuple

from nnabla_dqa.reporting.page.curves import ends, frame, gaps, has_any, line, number, plain_log
from nnabla_dqa.reporting.page.html import Markup, figure, table
from nnabla_dqa.reporting.page.run_record import Failure, RunRecord
from nnabla_dqa.reporting.page.svg import BAD, DASHES, SERIES, drawing, embedded, legend


def losses(record: RunRecord) -> Markup:
    """The loss, with the steps before NaN or infinity ended it."""
    epochs = [epoch.epoch for epoch in record.epochs]
    values = [epoch.loss for epoch in record.epochs]
    title = "Loss"
    about = f"Mean training loss of {len(epochs)} epochs{ends(values)}."
    with drawing() as drawn:
        axis = drawn.subplots()
        line(axis, epochs, values, 0)
        if record.failure is not None:
            about += _failing(axis, record)
        frame(axis, record, "training loss")
        svg = embedded(drawn, title, about)
    rows: List[Tuple[object, str]] = [(e, number(v)) for e, v in zip(epochs, values)]
    if record.failure is not None:
        rows += [(f"step {step}", number(v)) for step, _, v in _last_steps(record.failure)]
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
    series = [(n, [_times(v, factor) for v in vs]) for n, vs in series if has_any(vs)]
    if not series:
        return None
    epochs = [epoch.epoch for epoch in record.epochs]
    title = "Accuracy" if accuracy else "Mean squared error"
    about = f"{title} over {len(epochs)} epochs. " + " ".join(
        f"{name}{ends(values)}." for name, values in series
    )
    with drawing() as drawn:
        axis = drawn.subplots()
        for k, (_, values) in enumerate(series):
            line(axis, epochs, values, k)
        frame(axis, record, unit)
        svg = embedded(drawn, title, about)
    rows = [(e, *(number(vs[i]) for _, vs in series)) for i, e in enumerate(epochs)]
    note = "As deployed: the target quantizers alone, on the validation data."
    names = [name for name, _ in series]
    numbers = table(f"{unit} by epoch", ("epoch", *names), rows)
    return figure(title, svg, numbers, note, legend(names))


def _failing(axis: Any, record: RunRecord) -> str:
    """Draw the last steps before the loss was no number; returns the words for it."""
    assert record.failure is not None
    steps = _last_steps(record.failure)
    if steps:
        x = [place for _, place, _ in steps]
        marker = "o" if len(x) < 3 else None
        values = gaps([v for *_, v in steps])
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
        plain_log(axis.yaxis)
    return f" It was stopped after {record.failure.step} steps by NaN or infinity."


def _last_steps(failure: Failure) -> List[Tuple[int, float, float]]:
    """Step, place in epochs, and loss of those before the failure."""
    numbers = range(failure.step - len(failure.losses) + 1, failure.step + 1)
    return [(n, n / failure.steps_per_epoch, loss) for n, loss in zip(numbers, failure.losses)]


def _times(value: Optional[float], factor: float) -> Optional[float]:
    return None if value is None else value * factor
