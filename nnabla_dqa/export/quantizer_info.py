"""What a deployed tensor says of its quantizer, whose class need not be known."""

from __future__ import annotations

from typing import Any, Dict, Mapping, NamedTuple

from nnabla_dqa.quantization import Quantizer
from nnabla_dqa.quantization.encoding import FLOAT_BITS


class QuantizerInfo(NamedTuple):
    """What is known of the quantizer of a deployed tensor; its class need not be.

    ``name`` is short (``MinMax2@0``), ``levels`` the number of values that a
    range may have, ``arguments`` those the class was made with.
    """

    type: str
    name: str
    bits: int
    levels: int
    arguments: Mapping[str, Any]

    @classmethod
    def of(cls, quantizer: Quantizer) -> QuantizerInfo:
        """The description of a quantizer."""
        arguments = quantizer.to_json()
        kind = arguments.pop("type")
        name = short_name(kind, arguments)
        return cls(kind, name, quantizer.bits, quantizer.levels, arguments)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> QuantizerInfo:
        """The inverse of :meth:`to_json`; raises KeyError, TypeError or ValueError."""
        info = cls(
            str(data["type"]),
            str(data["name"]),
            int(data["bits"]),
            int(data["levels"]),
            dict(data["arguments"]),
        )
        if not 1 <= info.bits <= FLOAT_BITS or not 1 <= info.levels <= 2**info.bits:
            raise ValueError(f"{info.levels} levels of {info.bits} bits")
        return info

    @property
    def is_float(self) -> bool:
        """Whether the tensor is not quantized at all."""
        return self.bits == FLOAT_BITS

    def to_json(self) -> Dict[str, Any]:
        """The description as JSON values."""
        return {**self._asdict(), "arguments": dict(self.arguments)}


def short_name(kind: str, arguments: Mapping[str, Any]) -> str:
    """``MinMax2`` for ``MinMax(bits=2)``, ``BWN@0`` for ``BWN(channel_axis=0)``."""
    axis = arguments.get("channel_axis")
    return f"{kind}{arguments.get('bits', '')}{'' if axis is None else f'@{axis}'}"
