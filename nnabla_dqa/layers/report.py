"""A table of the DQA layers: attention, arg max, bits."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, Iterable, List, Tuple

from nnabla_dqa.layers.tensors import Layer, Mixture, find_layers


@dataclasses.dataclass(frozen=True)
class LayerReport:
    """One DQA layer at the time of the report.

    ``shares`` are those of the mixing rule, also when the layer is hard: they
    tell where attention is, not only what is used. ``bits`` is the bit width
    of the target quantizer.
    """

    name: str
    function: str
    shape: Tuple[int, ...]
    quantizers: Tuple[str, ...]
    widths: Tuple[int, ...]
    shares: Tuple[float, ...]
    hard: bool

    @property
    def weights(self) -> int:
        """The number of weights."""
        return math.prod(self.shape)

    @property
    def bits(self) -> int:
        """Bit width of the target quantizer, the lowest."""
        return self.widths[0]

    @property
    def argmax(self) -> int:
        """Index of the quantizer with the largest share."""
        return max(range(len(self.shares)), key=self.shares.__getitem__)

    @property
    def on_target(self) -> bool:
        """Whether the largest share is that of the lowest bit width."""
        return self.argmax == 0


@dataclasses.dataclass(frozen=True)
class Report:
    """The DQA layers of a scope; ``str()`` of it is a table."""

    layers: Tuple[LayerReport, ...]

    def messages(self) -> List[str]:
        """One line for each layer whose attention is not on the lowest bit width alone.

        Either it is elsewhere, or the layer is still soft: not hard, and the
        share of the lowest bit width below 0.99.
        """
        elsewhere = [
            f"layer {row.name}: attention is on {row.quantizers[row.argmax]} "
            f"(share {row.shares[row.argmax]:.3f}), not on {row.quantizers[0]} "
            f"(share {row.shares[0]:.3f}), which is what is deployed"
            for row in self.layers
            if not row.on_target
        ]
        soft = [
            f"layer {row.name} is still soft: {row.quantizers[0]}, which is what is deployed, has "
            f"only a share of {row.shares[0]:.3f}; train to the end of a schedule with a hard end"
            for row in self.layers
            if row.on_target and not row.hard and row.shares[0] < 0.99
        ]
        return elsewhere + soft

    def __str__(self) -> str:
        head = (
            "layer",
            "function",
            "weights",
            "quantizers",
            "attention",
            "arg max",
            "bits",
            "hard",
        )
        rows = [
            (
                row.name,
                row.function,
                f"{row.weights:,}",
                " ".join(row.quantizers),
                " ".join(f"{a:.3f}" for a in row.shares),
                row.quantizers[row.argmax] + ("" if row.on_target else " (!)"),
                str(row.bits),
                "yes" if row.hard else "no",
            )
            for row in self.layers
        ]
        return format_table([head, *rows])


def format_table(rows: List[Tuple[str, ...]]) -> str:
    """Rows of strings as aligned columns, a rule under the first."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(w) for cell, w in zip(row, widths)).rstrip() for row in rows]
    return "\n".join([lines[0], "  ".join("-" * w for w in widths), *lines[1:]])


def report(scope: Any = None) -> Report:
    """The state of all DQA layers below a parameter scope (default: the current one).

    It reads only.

    Raises:
        ValueError: There is no DQA layer.
    """
    layers = find_layers(scope)
    if not layers:
        raise ValueError("report: the parameter scope has no DQA layer; build the model first")
    return Report(tuple(_row(layer) for layer in layers))


def _row(layer: Layer) -> LayerReport:
    shape = tuple(layer.weight.shape)
    return layer_report(
        layer.name, layer.function, shape, layer.mixture, layer.attention(), layer.is_hard
    )


def layer_report(
    name: str,
    function: str,
    shape: Tuple[int, ...],
    mixture: Mixture,
    shares: Iterable[float],
    hard: bool,
) -> LayerReport:
    """A row from what is known about a layer."""
    return LayerReport(
        name,
        function,
        shape,
        tuple(short_name(q) for q in mixture.quantizers),
        tuple(q.bits for q in mixture.quantizers),
        tuple(float(a) for a in shares),
        hard,
    )


def short_name(quantizer: Any) -> str:
    """``MinMax2`` for ``MinMax(bits=2)``, ``BWN@0`` for ``BWN(channel_axis=0)``."""
    fields = {field.name for field in dataclasses.fields(quantizer)}
    bits = str(quantizer.bits) if "bits" in fields else ""
    axis = "" if quantizer.axis is None else f"@{quantizer.axis}"
    return f"{type(quantizer).__name__}{bits}{axis}"
