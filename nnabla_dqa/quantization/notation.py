"""Quantizer sets as short text or as mappings, for the command line and YAML: ``minmax:2,4,8``."""

from __future__ import annotations

import dataclasses
from typing import Any, Dict, List, Mapping, NamedTuple, Optional, Sequence, Tuple, Type

from nnabla_dqa._util.files import parse_yaml
from nnabla_dqa._util.registry import UnknownTypeError, field_values
from nnabla_dqa.quantization.base import Quantizer
from nnabla_dqa.quantization.registry import QUANTIZERS

_ALIASES = {"float": "FullPrecision", "fp": "FullPrecision"}
_PER_CHANNEL = "channel"
EXAMPLES = (
    "minmax:2,4,8  sawb:2  bwn/twn/float  twn/minmax:4,8  minmax:2,4,8@channel  "
    "sawb:2,4,channel_axis=0  qn:ternary  parq:2  float"
)


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

    def to_json(self) -> List[Dict[str, Any]]:
        """The set as JSON values, which :func:`quantizer_set` reads."""
        axis = {"channel_axis": _PER_CHANNEL} if self.per_channel else {}
        return [{**q.to_json(), **(axis if _has_axis(q) else {})} for q in self.quantizers]


def quantizer_set(value: Any) -> QuantizerSet:
    """The set that a value of YAML, the command line or Python stands for.

    It is a notation (:func:`parse_quantizers`), a quantizer, a mapping such as
    ``{type: SAWB, bits: 2, channel_axis: 0}``, or a list of these. In a
    mapping ``bits`` may be a list, for one quantizer of each width, and
    ``channel_axis: channel`` is what ``@channel`` is in a notation. Text that
    begins with ``{`` or ``[`` is such a mapping or list in YAML.

    Raises:
        ValueError: It is none of these; the message says what is.
    """
    if isinstance(value, QuantizerSet):
        return value
    if isinstance(value, str):
        as_yaml = value.lstrip().startswith(("{", "["))
        return quantizer_set(parse_yaml(value)) if as_yaml else parse_quantizers(value)
    if isinstance(value, Quantizer):
        return QuantizerSet((value,))
    if isinstance(value, Mapping):
        return _from_mapping(value)
    if not isinstance(value, Sequence) or not value:
        raise ValueError(
            f"quantizers must be text such as 'minmax:2,4,8', a mapping such as "
            f"{{type: SAWB, bits: 2}}, or a list of these; got {value!r}"
        )
    sets = [quantizer_set(entry) for entry in value]
    per_channel = any(entry.per_channel for entry in sets)
    for entry in sets:
        if per_channel and any(q.axis is not None for q in entry.quantizers):
            raise ValueError(
                f"quantizers {value!r}: one is per output channel and another has an axis of its "
                f"own; they must agree"
            )
    return QuantizerSet(tuple(q for entry in sets for q in entry.quantizers), per_channel)


def parse_quantizers(text: str) -> QuantizerSet:
    """The set that a notation stands for.

    A set is one or more kinds joined by ``/``. A kind is the name of a
    quantizer's class (case, ``_`` and ``-`` do not matter), followed by ``:``
    and, joined by commas, its bit widths where it has a choice and
    ``field=value`` for any other field of the class: ``sawb:2,4,channel_axis=0``
    or, with a class of your own, ``absmean:threshold=0.7``. A value is JSON
    (a number, ``true``, ``null``), or else text. ``float`` leaves weights as
    they are. Some widths have a name: ``qn:ternary``. ``@channel`` at the end
    gives every output channel a range of its own, ``@0`` every index of axis 0.

    Raises:
        ValueError: The text is not such a notation; the message says what is.

    Example:
        parse_quantizers("minmax:2,4,8").quantizers == (MinMax(2), MinMax(4), MinMax(8))
    """
    kinds, _, channel = text.strip().partition("@")
    axis: Optional[int] = None
    if "@" in text and channel != _PER_CHANNEL:
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
    return QuantizerSet(tuple(quantizers), channel == _PER_CHANNEL)


def _kind(text: str) -> List[Quantizer]:
    name, colon, rest = text.strip().partition(":")
    cls = _class(name)
    parts = rest.split(",") if colon else []
    widths = [part for part in parts if "=" not in part]
    fields = field_values(part for part in parts if "=" in part)
    if _has_bits(cls) and not widths:
        raise ValueError(f"{name} takes bit widths, as in {name}:2,4")
    if widths and not _has_bits(cls):
        raise ValueError(f"{name} takes no bit widths")
    if "bits" in fields:
        raise ValueError(f"bit widths are written as in {name}:2,4")
    if not widths:
        return [QUANTIZERS.make(cls, fields)]
    return [_of_width(cls, width, fields) for width in widths]


def _from_mapping(value: Mapping[Any, Any]) -> QuantizerSet:
    fields: Dict[str, Any] = dict(value)
    try:
        cls = _class(fields.pop("type", None))
    except ValueError as error:
        raise ValueError(f"quantizer {dict(value)!r}: {error}") from None
    per_channel = fields.get("channel_axis") == _PER_CHANNEL
    if per_channel:
        fields["channel_axis"] = None
    bits = fields.pop("bits", None)
    if bits is None:
        return QuantizerSet((QUANTIZERS.make(cls, fields),), per_channel)
    widths = bits if isinstance(bits, list) else [bits]
    made = tuple(QUANTIZERS.make(cls, {"bits": width, **fields}) for width in widths)
    return QuantizerSet(made, per_channel)


def _class(name: Any) -> Type[Quantizer]:
    try:
        return QUANTIZERS.find(_ALIASES.get(name.lower(), name) if isinstance(name, str) else name)
    except UnknownTypeError:
        known = ", ".join(["float", *sorted(key.lower() for key in QUANTIZERS.types)])
        raise UnknownTypeError(f"{name!r} is none of {known}{QUANTIZERS.hint}") from None


def _has_bits(cls: Type[Quantizer]) -> bool:
    return any(f.name == "bits" and f.init for f in dataclasses.fields(cls))  # type: ignore[arg-type]


def _of_width(cls: Type[Quantizer], width: str, fields: Mapping[str, Any]) -> Quantizer:
    made = QUANTIZERS.make(cls, {**_width(cls, width), **fields})
    if width in cls.named_widths:
        # Of activations the same bits may mean other levels than the word says.
        object.__setattr__(made, "width_name", width)
    return made


def _width(cls: Type[Quantizer], width: str) -> Mapping[str, Any]:
    if width in cls.named_widths:
        return cls.named_widths[width]
    try:
        return {"bits": int(width)}
    except ValueError:
        names = "".join(f" or {name!r}" for name in cls.named_widths)
        raise ValueError(f"{width!r} is not a number of bits{names}") from None


def _with_axis(quantizer: Quantizer, axis: int) -> Quantizer:
    fields: Any = quantizer
    return dataclasses.replace(fields, channel_axis=axis) if _has_axis(quantizer) else quantizer


def _has_axis(quantizer: Any) -> bool:
    return any(field.name == "channel_axis" for field in dataclasses.fields(quantizer))
