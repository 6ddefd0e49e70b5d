"""Pictures of layers: bytes, weights before and on their levels, ranges of activations."""

from __future__ import annotations

from typing import Any, List, Optional, Sequence, Tuple

import numpy as np

from nnabla_dqa.export.activation import DeployedActivation
from nnabla_dqa.export.tensor import DeployedTensor
from nnabla_dqa.nnp.summary import FileSummary
from nnabla_dqa.quantization.encoding import RowLayout
from nnabla_dqa.reporting.page.html import Markup, figure, pairs, table
from nnabla_dqa.reporting.page.network_view import Weights
from nnabla_dqa.reporting.page.svg import (
    INK,
    MUTED,
    SERIES,
    SMALL,
    WIDE,
    drawing,
    embedded,
    shortened,
)

_BINS = 60
_MOST_LEVELS = 16
"""More levels than this are told by their ends and distance, not one by one."""


def bytes_by_layer(summary: FileSummary) -> Markup:
    """Bytes of each layer's weights, packed, against float32."""
    layers = summary.layers
    title = "Bytes by layer"
    about = (
        f"Weights of {len(layers)} layers: {sum(r.float_bytes for r in layers):,} bytes as "
        f"float32, {sum(r.packed_bytes for r in layers):,} at their bits, on a logarithmic axis."
    )
    with drawing((WIDE[0], 1.1 + 0.2 * len(layers))) as drawn:
        axis = drawn.subplots()
        places = np.arange(len(layers))
        axis.barh(places, [r.float_bytes for r in layers], 0.75, color=MUTED, alpha=0.35)
        axis.barh(places, [r.packed_bytes for r in layers], 0.75, color=SERIES[0])
        axis.set_xscale("log")
        axis.set_yticks(places, [shortened(r.layer) for r in layers], fontsize=9)
        axis.set_ylim(len(layers) - 0.4, -0.6)
        axis.grid(axis="x")
        axis.grid(visible=False, axis="y")
        for place, row in zip(places, layers):
            axis.annotate(
                f"{row.bits} bits",
                (row.float_bytes, place),
                (3, 0),
                textcoords="offset points",
                va="center",
                fontsize=9,
                color=INK,
            )
        axis.margins(x=0.14)
        _byte_ticks(axis)
        axis.set_xlabel("bytes")
        svg = embedded(drawn, title, about)
    note = "The whole bar: as float32. Its coloured part: packed at the bits beside it."
    return figure(title, svg, byte_table(summary), note)


def byte_table(summary: FileSummary) -> Markup:
    """Bits and bytes of each layer and of the rest."""
    head = ("layer", "function", "shape", "weights", "quantizer", "bits", "float bytes", "packed")
    rows: List[Tuple[object, ...]] = [
        (
            row.layer,
            row.function,
            "x".join(map(str, row.shape)),
            f"{row.weights:,}",
            " ".join(row.quantizers) or "float",
            row.bits,
            f"{row.float_bytes:,}",
            f"{row.packed_bytes:,}",
        )
        for row in summary.layers
    ]
    others = 4 * summary.other_parameters
    count = f"{summary.other_parameters:,}"
    rows.append(("other parameters", "", "", count, "float", 32, f"{others:,}", f"{others:,}"))
    total = f"{summary.weights + summary.other_parameters:,}"
    both = (f"{summary.float_bytes:,}", f"{summary.packed_bytes:,}")
    rows.append(("total", "", "", total, "", "", *both))
    return table("Bits and bytes by layer", head, rows)


def weights_picture(weights: Weights) -> Markup:
    """A layer's weights: float above, with the levels as lines, and what is on each level below."""
    before, after = weights.before, weights.after
    quantized = after is not None and not after.quantizer.is_float
    parts = [text for text in (_before(before), _after(after)) if text]
    about = f"Weights of {weights.layer}. {' '.join(parts)}"
    both = before is not None and quantized
    height = SMALL[1] * (1.45 if both else 1.0)
    with drawing((SMALL[0], height), (0.22, 0.17 if both else 0.24, 0.97, 0.97)) as drawn:
        found = drawn.subplots(2 if both else 1, 1, sharex=True, squeeze=False)[:, 0]
        span = _span(before, after)
        if before is not None:
            _histogram(found[0], before, span, "float")
            if after is not None and quantized and after.groups == 1:
                for level in _levels(after)[:256]:
                    found[0].axvline(level, color=SERIES[1], linewidth=1.1, linestyle=":")
        if after is not None and quantized:
            _on_levels(found[-1], after, span)
        lined = both and after is not None and after.groups == 1
        found[-1].set_xlabel("weight (dotted: levels)" if lined else "weight")
        svg = embedded(drawn, weights.layer, about)
    return figure(weights.layer, svg, _weights_table(weights), _note(weights))


def activation_ranges(activations: Sequence[DeployedActivation]) -> Markup:
    """The range of what enters each layer, with its levels."""
    title = "Ranges of quantized activations"
    about = f"From the lowest to the highest level of what enters {len(activations)} layers."
    rows = []
    with drawing((WIDE[0], 1.0 + 0.22 * len(activations))) as drawn:
        axis = drawn.subplots()
        for row, activation in enumerate(activations):
            codes = np.arange(activation.quantizer.levels)
            levels = activation.offset + activation.scale * codes
            low, high = float(levels[0]), float(levels[-1])
            axis.plot([low, high], [row, row], color=SERIES[0], linewidth=4, alpha=0.45)
            if len(levels) <= _MOST_LEVELS:
                axis.plot(levels, [row] * len(levels), "|", color=INK, markersize=9)
            rows.append(
                (
                    activation.layer,
                    activation.quantizer.name,
                    activation.bits,
                    f"{low:.5g}",
                    f"{high:.5g}",
                    f"{activation.scale:.5g}",
                )
            )
        names = [shortened(activation.layer) for activation in activations]
        axis.set_yticks(range(len(names)), names, fontsize=9)
        axis.set_ylim(len(names) - 0.5, -0.5)
        axis.grid(axis="x")
        axis.grid(visible=False, axis="y")
        axis.set_xlabel("value (strokes: levels)")
        svg = embedded(drawn, title, about)
    head = ("enters", "quantizer", "bits", "lowest", "highest", "distance of levels")
    return figure(title, svg, table(title, head, rows))


def _span(before: Optional[np.ndarray], after: Optional[DeployedTensor]) -> Tuple[float, float]:
    arrays = [a for a in (before, None if after is None else after.array) if a is not None]
    values = np.concatenate([_finite(array) for array in arrays])
    if values.size == 0:
        return -1.0, 1.0
    low, high = float(values.min()), float(values.max())
    edge = 0.04 * (high - low) or 0.5
    return low - edge, high + edge


def _finite(array: np.ndarray) -> np.ndarray:
    values: np.ndarray = array[np.isfinite(array)].astype(np.float64)
    return values


def _histogram(axis: Any, array: np.ndarray, span: Tuple[float, float], name: str) -> None:
    counts, edges = np.histogram(_finite(array), _BINS, span)
    share = 100 * counts / max(1, array.size)
    axis.stairs(share, edges, fill=True, color=SERIES[0], alpha=0.6)
    axis.set_ylabel(f"% of weights\n{name}")


def _on_levels(axis: Any, after: DeployedTensor, span: Tuple[float, float]) -> None:
    if after.groups > 1:
        _histogram(axis, after.array, span, after.quantizer.name)
        return
    values, counts = np.unique(after.array, return_counts=True)
    axis.vlines(
        values, 0, 100 * counts / after.array.size, color=SERIES[1], linewidth=_stroke(values)
    )
    axis.set_ylim(bottom=0)
    axis.set_xlim(*span)
    axis.set_ylabel(f"% of weights\n{after.quantizer.name}")


def _stroke(values: np.ndarray) -> float:
    return 5.0 if len(values) <= _MOST_LEVELS else 1.0


def _levels(after: DeployedTensor) -> np.ndarray:
    """The levels of a tensor with one set of them, those that no weight lies on too."""
    if after.levels is not None:
        return np.asarray(after.levels[0], np.float64)
    assert after.scale is not None
    assert after.offset is not None
    codes = np.arange(after.quantizer.levels)
    levels: np.ndarray = codes * float(after.scale.ravel()[0]) + float(after.offset.ravel()[0])
    return levels


def _weights_table(weights: Weights) -> Markup:
    after = weights.after
    name = f"Weights of {weights.layer}"
    if after is None or after.quantizer.is_float:
        array = weights.before if weights.before is not None else getattr(after, "array", None)
        return pairs(name, [] if array is None else _spread(array))
    if after.groups > 1 or after.quantizer.levels > _MOST_LEVELS:
        return pairs(name, _many(weights, after))
    codes = after.codes
    assert codes is not None
    rows = []
    for code, level in enumerate(_levels(after)):
        on = codes == code
        moved = "-"
        if weights.before is not None and on.any():
            source = weights.before[on]
            moved = f"{source.min():.4g} to {source.max():.4g}"
        rows.append((code, f"{level:.5g}", f"{on.sum():,}", f"{100 * on.mean():.1f} %", moved))
    return table(name, ("code", "level", "weights", "share", "float weights there"), rows)


def _many(weights: Weights, after: DeployedTensor) -> List[Tuple[str, object]]:
    rows: List[Tuple[str, object]] = [
        ("quantizer", after.quantizer.name),
        ("sets of levels", f"{after.groups:,}"),
        ("levels of a set", f"{after.quantizer.levels:,}"),
        ("distinct values, at most", f"{after.values:,}"),
        ("lowest", f"{after.array.min():.5g}"),
        ("highest", f"{after.array.max():.5g}"),
    ]
    if weights.before is not None:
        rows += [(f"float, {what}", value) for what, value in _spread(weights.before)]
    return rows


def _spread(array: np.ndarray) -> List[Tuple[str, object]]:
    values = _finite(array)
    rows: List[Tuple[str, object]] = [("weights", f"{array.size:,}")]
    if values.size:
        found = (("lowest", values.min()), ("highest", values.max()), ("mean", values.mean()))
        rows += [(name, f"{v:.5g}") for name, v in (*found, ("standard deviation", values.std()))]
    if values.size < array.size:
        rows.append(("NaN or infinite", f"{array.size - values.size:,}"))
    return rows


def _before(before: Optional[np.ndarray]) -> str:
    if before is None:
        return ""
    values = _finite(before)
    if not values.size:
        return "No float weight is finite."
    return f"Float: {before.size:,} from {values.min():.4g} to {values.max():.4g}."


def _after(after: Optional[DeployedTensor]) -> str:
    if after is None or after.quantizer.is_float:
        return ""
    if after.groups > 1:
        return f"{after.quantizer.name}: {after.groups} sets of {after.quantizer.levels} levels."
    values, counts = np.unique(after.array, return_counts=True)
    if len(values) > _MOST_LEVELS:
        return f"{after.quantizer.name}: {len(values)} levels in use."
    shares = ", ".join(f"{v:.4g}: {100 * c / counts.sum():.0f} %" for v, c in zip(values, counts))
    return f"{after.quantizer.name}, share of the weights on each level: {shares}."


def _note(weights: Weights) -> str:
    """How far the quantizer moves the weights."""
    before, after = weights.before, weights.after
    if after is not None and not after.quantizer.is_float and after.groups > 1:
        axis = RowLayout.of(after.shape, after.channel_axis).axis
        return f"Levels differ by channel (axis {axis}); all channels are counted together."
    if before is None or after is None or after.quantizer.is_float:
        return ""
    size = float(np.abs(before).mean())
    moved = float(np.abs(before - after.array).mean())
    return f"Mean |w - q| / mean |w|: {moved / size:.3f}" if size else ""


def _byte_ticks(axis: Any) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    axis.xaxis.set_major_locator(LogLocator(numticks=6))
    axis.xaxis.set_major_formatter(FuncFormatter(_short_bytes))
    axis.xaxis.set_minor_locator(NullLocator())


def _short_bytes(value: float, _: object = None) -> str:
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if value >= size:
            return f"{value / size:g}{unit}"
    return f"{value:g}"
