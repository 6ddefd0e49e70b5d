"""The identity, for mixtures with a float member and for layers that stay float."""

from __future__ import annotations

import dataclasses
from typing import ClassVar, Mapping, Optional, Tuple

import nnabla.functions as F
import numpy as np

from nnabla_dqa.quantization.base import Grid, Quantizer
from nnabla_dqa.quantization.encoding import Encoded
from nnabla_dqa.quantization.statistics import Statistics


@dataclasses.dataclass(frozen=True)
class FullPrecision(Quantizer):
    """``Q(w) = w``; counted as 32 bits, as in the paper's sets 1/2/32.

    Examples:
        >>> import nnabla_dqa as dqa
        >>> mixture = dqa.make_mixture(dqa.BWN(), dqa.TWN(), dqa.FullPrecision())  # bwn/twn/float
        >>> [quantizer.bits for quantizer in mixture.quantizers]
        [1, 2, 32]
    """

    bits: ClassVar[int] = 32  # type: ignore[misc]

    tensors: ClassVar[Tuple[str, ...]] = ("weight", "activation")

    is_float: ClassVar[bool] = True

    def grid(self, statistics: Statistics) -> Grid:
        return Grid(statistics.w, statistics.one, F.mul_scalar(statistics.one, 0.0))

    def encode(
        self, weights: np.ndarray, state: Optional[Mapping[str, np.ndarray]] = None
    ) -> Encoded:
        """Always raises ValueError: float weights have no codes."""
        raise ValueError("FullPrecision has no integer codes; use quantize() for the weights")

    def quantize(
        self, weights: np.ndarray, state: Optional[Mapping[str, np.ndarray]] = None
    ) -> np.ndarray:
        """The weights as float32."""
        return np.array(weights, np.float32)
