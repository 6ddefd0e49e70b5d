"""Quantizers by name, for JSON, recipes and the command line."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, Dict, Optional, Tuple, Type

from nnabla_dqa._util.registry import Registry, UnknownTypeError, frozen
from nnabla_dqa.quantization.base import Grid, Quantizer
from nnabla_dqa.quantization.statistics import Statistics

QUANTIZERS: Registry[Quantizer] = Registry("quantizer", "nnabla_dqa.quantizers")
register_quantizer = QUANTIZERS.register
quantizer_from_json = QUANTIZERS.from_json


class UnknownQuantizer(Quantizer):
    """Stands for a quantizer whose class this process does not know.

    It has the name, the fields and the bits of the original, so that a file
    that mentions it can be shown and kept. It cannot quantize.
    """

    def grid(self, statistics: Statistics) -> Grid:
        """Always raises UnknownTypeError; names the type and how to make it known."""
        raise UnknownTypeError(self.reason)

    @property
    def reason(self) -> str:
        """Why it cannot quantize."""
        return (
            f"the class of quantizer {type(self).__name__} is not known here; import the module "
            f"that registers it, or install its package{QUANTIZERS.hint}"
        )


def quantizer_or_stand_in(data: Any, bits: Optional[int] = None) -> Quantizer:
    """What ``data`` describes, or an :class:`UnknownQuantizer` if its class is not known.

    Args:
        data: JSON as of :meth:`Quantizer.to_json`.
        bits: Bits of the quantizer, where its JSON does not have them.

    Raises:
        UnknownTypeError: The class is not known and nothing tells its bits.
        ValueError: The JSON is no quantizer.
    """
    try:
        return quantizer_from_json(data)
    except UnknownTypeError:
        name = data.get("type")
        bits = data.get("bits", bits)
        if not isinstance(name, str) or not name.isidentifier() or not isinstance(bits, int):
            raise
        fields = {key: frozen(value) for key, value in data.items() if key != "type"}
        stand_in: Quantizer = _stand_in(name, tuple(sorted(fields)), bits)(**fields)
        return stand_in


@functools.cache
def _stand_in(name: str, fields: Tuple[str, ...], bits: int) -> Type[Any]:
    # Messages and reports name a quantizer by its class and read its fields.
    own: Dict[str, Any] = {} if "bits" in fields else {"bits": bits}
    return dataclasses.make_dataclass(
        name, fields, bases=(UnknownQuantizer,), namespace=own, frozen=True
    )
