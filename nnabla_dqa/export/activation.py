"""A quantized activation of a deployed network: where it is, and its levels."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, Dict, Mapping, Tuple

import numpy as np

from nnabla_dqa.export.quantizer_info import QuantizerInfo


@dataclasses.dataclass(frozen=True)
class DeployedActivation:
    """What enters a layer, on the levels ``scale * code + offset`` in float32.

    Attributes:
        name: Of the variable in the network.
        layer: The layer's name, with ``:input``.
        function: NNabla's name of what uses it.
        quantizer: The one that remains.
        shape: Of the variable, batch first.
        scale, offset: Of its levels.
        attention: The coefficients of the layer's quantizers when it was deployed.
        mixture: Those quantizers and their mixing rule, as JSON.
    """

    name: str
    layer: str
    function: str
    quantizer: QuantizerInfo
    shape: Tuple[int, ...]
    scale: float
    offset: float
    attention: Tuple[float, ...]
    mixture: Mapping[str, Any]

    @property
    def bits(self) -> int:
        """Bits of a code."""
        return self.quantizer.bits

    @property
    def packed_bytes(self) -> int:
        """The bytes of the codes at batch 1."""
        return math.ceil(math.prod(self.shape[1:]) * self.bits / 8)

    def fault(self, values: np.ndarray) -> str:
        """What is wrong with values that the network computes; '' if they lie on its levels."""
        if self.quantizer.is_float:
            return ""
        distinct = np.unique(values)
        if distinct.size > self.quantizer.levels:
            return f"{distinct.size} distinct values where {self.quantizer.levels} are allowed"
        codes = np.arange(self.quantizer.levels, dtype=np.float32)
        levels = codes * np.float32(self.scale) + np.float32(self.offset)
        off = distinct[~np.isin(distinct, levels)]
        return f"{off[0]!r} is not one of its levels" if off.size else ""

    def to_json(self) -> Dict[str, Any]:
        """What a file says of it."""
        return {
            **dataclasses.asdict(self),
            "quantizer": self.quantizer.to_json(),
            "shape": list(self.shape),
            "attention": list(self.attention),
            "mixture": dict(self.mixture),
        }

    @classmethod
    def from_json(cls, entry: Mapping[str, Any]) -> DeployedActivation:
        """The inverse of :meth:`to_json`; raises KeyError, TypeError or ValueError."""
        return cls(
            str(entry["name"]),
            str(entry["layer"]),
            str(entry["function"]),
            QuantizerInfo.from_json(entry["quantizer"]),
            tuple(int(n) for n in entry["shape"]),
            float(entry["scale"]),
            float(entry["offset"]),
            tuple(float(a) for a in entry["attention"]),
            dict(entry["mixture"]),
        )
