"""A table of the quantized tensors: attention, arg max, bits."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, Iterable, List, Optional, Tuple

from nnabla_dqa._util.tables import format_table
from nnabla_dqa.backends import backend_of
from nnabla_dqa.layers.config import WEIGHT
from nnabla_dqa.layers.tensors import QuantizedTensor, find_quantized
from nnabla_dqa.mixing import Mixture


@dataclasses.dataclass(frozen=True)
class LayerReport:
    """One layer at the time of the report.

    ``attention`` are the mixing rule's coefficients, also when the layer is hard: they
    tell where attention is, not only what is used. ``target`` is the index of the
    quantizer that remains, ``bits`` its bit width. ``tensor`` is ``"weight"``, or
    ``"activation"`` for what enters the layer; ``shape`` is that of the layer's weights.
    ``soft_gap``: ``mean|soft - steps| / mean|steps|`` of the weights of a target that training
    softens, such as :class:`~nnabla_dqa.QN`, as soft as it was last; None for others.
    ``by_budget``: a budget has chosen what remains.
    """

    name: str
    function: str
    shape: Tuple[int, ...]
    quantizers: Tuple[str, ...]
    bit_widths: Tuple[int, ...]
    attention: Tuple[float, ...]
    hard: bool
    target: int = 0
    backend: str = ""
    tensor: str = WEIGHT
    soft_gap: Optional[float] = None
    by_budget: bool = False

    def with_choice(self, index: int) -> LayerReport:
        """The row of a layer of which a budget has chosen this quantizer."""
        return dataclasses.replace(self, target=index, by_budget=True)

    @property
    def weights(self) -> int:
        """The number of weights; 0 for activations."""
        return math.prod(self.shape) if self.tensor == WEIGHT else 0

    @property
    def bits(self) -> int:
        """Bit width of the target quantizer."""
        return self.bit_widths[self.target]

    @property
    def argmax(self) -> int:
        """Index of the quantizer with the largest attention."""
        return max(range(len(self.attention)), key=self.attention.__getitem__)

    @property
    def on_target(self) -> bool:
        """Whether the largest attention is the target's."""
        return self.argmax == self.target


@dataclasses.dataclass(frozen=True)
class Report:
    """The quantized layers of a scope; ``str()`` of it is a table."""

    layers: Tuple[LayerReport, ...]

    def messages(self) -> List[str]:
        """One line for each layer whose attention is not on its target alone.

        Either it is elsewhere, and no budget has chosen so, or the layer still mixes: it is not
        hard, and the target's attention is below 0.99.
        """
        elsewhere = [
            f"layer {row.name}: attention is on {row.quantizers[row.argmax]} "
            f"({row.attention[row.argmax]:.3f}), not on {row.quantizers[row.target]} "
            f"({row.attention[row.target]:.3f}), which is what is deployed"
            for row in self.layers
            if not (row.on_target or row.by_budget)
        ]
        mixed = [
            f"layer {row.name} still mixes quantizers: {row.quantizers[row.target]}, which is "
            f"what is deployed, has only {row.attention[row.target]:.3f} of the attention; train "
            f"to the end of a schedule with a hard phase"
            for row in self.layers
            if (row.on_target or row.by_budget)
            and not row.hard
            and row.attention[row.target] < 0.99
        ]
        return elsewhere + mixed

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
            "backend",
        )
        rows: List[Tuple[str, ...]] = [
            (
                row.name,
                row.function,
                f"{row.weights:,}" if row.tensor == WEIGHT else "-",
                " ".join(row.quantizers),
                " ".join(f"{a:.3f}" for a in row.attention),
                row.quantizers[row.argmax] + ("" if row.on_target else " (!)"),
                str(row.bits),
                "yes" if row.hard else "no",
                row.backend,
            )
            for row in self.layers
        ]
        table: List[Tuple[str, ...]] = [head, *rows]
        if any(row.soft_gap is not None for row in self.layers):
            gaps = ["-" if r.soft_gap is None else f"{r.soft_gap:.4f}" for r in self.layers]
            table = [(*row, cell) for row, cell in zip(table, ["soft gap", *gaps])]
        return format_table(table)


def report(scope: Any = None) -> Report:
    """The state of all quantized layers below a parameter scope (default: the current one).

    It reads only. ``backend`` is what computes a layer's mixture that is built
    now, in the current context; one that falls back to NNabla's own functions says why.

    Raises:
        ValueError: There is no quantized layer, or the state of one belongs to
            another net.

    Examples:
        >>> import nnabla as nn
        >>> import nnabla_dqa as dqa
        >>> import nnabla_dqa.parametric_functions as PF
        >>> with dqa.quantizers(dqa.MinMax(2), dqa.MinMax(4), dqa.MinMax(8)):
        ...     y = PF.dqa_affine(nn.Variable((8, 64)), 10, name="fc")
        >>> row = dqa.report().layers[0]  # print(dqa.report()) is a table
        >>> row.name, row.quantizers, row.bits, row.hard
        ('fc/affine', ('MinMax2', 'MinMax4', 'MinMax8'), 2, False)
    """
    layers = find_quantized(scope)
    if not layers:
        raise ValueError("report: the parameter scope has no DQA layer; build the model first")
    return Report(tuple(_row(layer) for layer in layers))


def _row(layer: QuantizedTensor) -> LayerReport:
    shape = tuple(layer.weight.shape)
    attention, is_hard = layer.attention(), layer.is_hard
    row = layer_report(
        layer.name, layer.function, shape, layer.mixture, attention, is_hard, layer.tensor
    )
    row = dataclasses.replace(row, soft_gap=layer.soft_gap())
    return row if layer.chosen is None else row.with_choice(layer.target)


def layer_report(
    name: str,
    function: str,
    shape: Tuple[int, ...],
    mixture: Mixture,
    attention: Iterable[float],
    hard: bool,
    tensor: str = "weight",
) -> LayerReport:
    """A row from what is known about a layer."""
    return LayerReport(
        name,
        function,
        shape,
        short_names(mixture),
        tuple(q.bits for q in mixture.quantizers),
        tuple(float(a) for a in attention),
        hard,
        mixture.target,
        backend_of(mixture.quantizers, shape, tensor=tensor),
        tensor=tensor,
    )


def short_names(mixture: Mixture) -> Tuple[str, ...]:
    """The short names of a mixture's quantizers."""
    return tuple(short_name(q) for q in mixture.quantizers)


def short_name(quantizer: Any) -> str:
    """``MinMax2`` for ``MinMax(bits=2)``, ``BWN@0`` for ``BWN(channel_axis=0)``."""
    fields = {field.name for field in dataclasses.fields(quantizer)}
    bits = str(quantizer.bits) if "bits" in fields else ""
    axis = "" if quantizer.axis is None else f"@{quantizer.axis}"
    return f"{type(quantizer).__name__}{bits}{axis}"
