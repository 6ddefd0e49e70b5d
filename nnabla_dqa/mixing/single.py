"""One quantizer alone: plain quantization-aware training."""

from __future__ import annotations

import dataclasses
from typing import ClassVar, Dict, Mapping, Sequence

from nnabla_dqa.mixing.base import MixingRule
from nnabla_dqa.quantization import Quantizer, StateEntry
from nnabla_dqa.quantization.graph_ops import Variable


@dataclasses.dataclass(frozen=True)
class Single(MixingRule):
    """``a = 1`` for the only quantizer; refuses more than one.

    Examples:
        >>> import nnabla_dqa as dqa
        >>> dqa.make_mixture(dqa.SAWB(2)) == dqa.Mixture((dqa.SAWB(2),), dqa.Single())
        True
    """

    label: ClassVar[str] = "Plain"

    def check(self, quantizers: Sequence[Quantizer]) -> str:
        if len(quantizers) != 1:
            raise ValueError(f"Single takes one quantizer, not {len(quantizers)}")
        return ""

    def state(self, quantizers: Sequence[Quantizer]) -> Dict[str, StateEntry]:
        return {}

    def coefficients(self, state: Mapping[str, Variable], count: int, target: int = 0) -> Variable:
        raise ValueError("Single has no coefficients to compute: its only quantizer has 1")
