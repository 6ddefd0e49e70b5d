"""Pictures. They need matplotlib: ``pip install 'nnabla_dqa[report]'``."""

from __future__ import annotations

import io
from typing import Any, Optional

from nnabla_dqa._util.files import PathLike, write_atomically
from nnabla_dqa.reporting.history import AttentionHistory

COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9")
"""Okabe and Ito's palette, which colour-blind readers can tell apart."""


def plot_attention(
    history: AttentionHistory, path: PathLike, title: str = "", soft_steps: Optional[int] = None
) -> None:
    """Attention over training, and the first layer's effective quantization at a few steps.

    The form of DQA's figure 2 (arXiv 2103.13322). Above: the shares of each
    quantizer, the first layer bold, the others thin, with the temperature;
    below: one panel for each recorded curve, a dot for every weight of the
    first layer.

    Args:
        history: With at least one record.
        path: A PNG file; replaced atomically.
        title: Printed above the picture.
        soft_steps: Where the hard phase begins; it is shaded.

    Raises:
        ValueError: The history is empty.
        ImportError: matplotlib is not installed.
    """
    if not history.steps:
        raise ValueError("plot_attention: the history is empty; call record() during training")
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    panels = max(1, len(history.curves))
    figure = Figure(figsize=(max(7.0, 2.1 * panels), 5.6), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    upper, lower = (
        figure.subfigures(2, 1, height_ratios=[1.25, 1])
        if history.curves
        else (
            figure,
            None,
        )
    )
    _shares(upper.subplots(), history, soft_steps)
    if lower is not None:
        axes = lower.subplots(1, panels, sharex=True, sharey=True, squeeze=False)[0]
        for axis, curve in zip(axes, history.curves):
            _curve(axis, curve)
        axes[0].set_ylabel("weight used, q")
        lower.supxlabel(f"float weight w of {next(iter(history.attention))}", fontsize=9)
    if title:
        figure.suptitle(title, fontsize=11)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    write_atomically(path, buffer.getvalue())


def _shares(axis: Any, history: AttentionHistory, soft_steps: Optional[int]) -> None:
    for position, rows in reversed(list(enumerate(history.attention.values()))):
        for k, name in enumerate(history.quantizers):
            if any(len(row) <= k for row in rows):
                continue
            first = position == 0
            axis.plot(
                history.steps,
                [row[k] for row in rows],
                color=COLOURS[k % len(COLOURS)],
                linewidth=2.2 if first else 0.8,
                alpha=1.0 if first else 0.45,
                label=f"{name}" if first else None,
            )
    if soft_steps is not None:
        axis.axvspan(soft_steps, history.steps[-1], color="0.9", zorder=0)
        axis.text(
            (soft_steps + history.steps[-1]) / 2,
            0.5,
            "hard phase",
            ha="center",
            fontsize=9,
            color="0.4",
        )
    axis.set(xlabel="training step", ylabel="attention a", ylim=(-0.03, 1.03))
    axis.margins(x=0.01)
    handles, labels = axis.get_legend_handles_labels()
    if history.temperatures[0] is not None:
        right = axis.twinx()
        (line,) = right.plot(history.steps, history.temperatures, color="0.5", linestyle=":")
        right.set(yscale="log", ylabel="temperature T")
        handles, labels = [*handles, line], [*labels, "temperature"]
    axis.legend(handles, labels, loc="center right", fontsize=8, framealpha=0.9)


def _curve(axis: Any, curve: Any) -> None:
    low, high = float(curve.weights[0]), float(curve.weights[-1])
    axis.plot([low, high], [low, high], color="0.8", linewidth=0.8, zorder=0)
    axis.scatter(curve.weights, curve.mixed, s=6, color=COLOURS[0], linewidths=0)
    axis.set_title(f"step {curve.step:,}", fontsize=9)
    axis.tick_params(labelsize=7)
