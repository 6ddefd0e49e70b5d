"""Quantizer sets as short text, for the command line and YAML: ``minmax:2,4,8``."""

from __future__ import annotations

import dataclasses
from typing import Any, List, NamedTuple, Optional, Tuple, Type

from nnabla_dqa.quantization.base import Quantizer
from nnabla_dqa.quantization.registry import QUANTIZERS

_ALIASES = {"float": "fullprecision", "fp": "fullprecision"}
EXAMPLES = "minmax:2,4,8  sawb:2  bwn/twn/float  twn/minmax:4,8  minmax:2,4,8@channel  float"


class QuantizerSet(NamedTuple):
    """Quantizers from the lowest to the highest bit width.

    ``per_channel``: one range per output channel, on the axis that the layer's
    function has them.
    """

    quantizers: Tuple[Quantizer, ...]
    per_channel: bool = False

    def for_axis(self, channel_axis: int) -> Tuple[Quantizer, ...]:
        """The quantizers for a layer whose output channels lie on ``channel_axis``."""
        if not self.per_channel:
            return self.quantizers
        return tuple(_with_axis(q, channel_axis) for q in self.quantizers)


def parse_quantizers(text: str) -> QuantizerSet:
    """The set that a notation stands for.

    A set is one or more kinds joined by ``/``; a kind is a quantizer's name
    (any case), followed by ``:`` and its bit widths where it has a choice.
    ``float`` leaves weights as they are. ``@channel`` at the end gives every
    output channel a range of its own, ``@0`` every index of axis 0.

    Raises:
        ValueError: The text is not such a notation; the message says what is.

    Example:
        parse_quantizers("minmax:2,4,8").quantizers == (MinMax(2), MinMax(4), MinMax(8))
    """
    kinds, _, channel = text.strip().partition("@")
    axis: Optional[int] = None
    if "@" in text and channel != "channel":
        try:
            axis = int(channel)
        except ValueError:
            raise ValueError(
                f"quantizers {text!r}: after @ comes 'channel' or the number of an axis"
            ) from None
    try:
        quantizers = [q for kind in kinds.split("/") for q in _kind(kind)]
    except ValueError as error:
        raise ValueError(f"quantizers {text!r}: {error}; examples: {EXAMPLES}") from None
    if axis is not None:
        quantizers = [_with_axis(q, axis) for q in quantizers]
    return QuantizerSet(tuple(quantizers), channel == "channel")


def _kind(text: str) -> List[Quantizer]:
    name, colon, widths = text.strip().partition(":")
    by_name = {key.lower(): cls for key, cls in QUANTIZERS.types.items()}
    cls = by_name.get(_ALIASES.get(name.lower(), name.lower()))
    if cls is None:
        raise ValueError(f"{name!r} is none of {', '.join(['float', *sorted(by_name)])}")
    has_bits = any(f.name == "bits" and f.init for f in dataclasses.fields(cls))  # type: ignore[arg-type]
    if has_bits != bool(colon):
        wanted = f"bit widths, as in {name}:2,4" if has_bits else "no bit widths"
        raise ValueError(f"{name} takes {wanted}")
    return [_make(cls, width) for width in widths.split(",")] if has_bits else [cls()]


def _make(cls: Type[Any], width: str) -> Quantizer:
    try:
        bits = int(width)
    except ValueError:
        raise ValueError(f"{width!r} is not a number of bits") from None
    made: Quantizer = cls(bits=bits)
    return made


def _with_axis(quantizer: Quantizer, axis: int) -> Quantizer:
    fields: Any = quantizer
    if all(field.name != "channel_axis" for field in dataclasses.fields(fields)):
        return quantizer
    replaced: Quantizer = dataclasses.replace(fields, channel_axis=axis)
    return replaced
