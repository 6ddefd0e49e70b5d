"""Range statistics of a weight tensor, computed once and shared by its quantizers."""

from __future__ import annotations

from functools import cached_property

import nnabla.functions as F

from nnabla_dqa.quantization.graph_ops import Variable, scale_rows, shift_rows

TINY = 1e-30
"""Ranges below this count as zero: their inverse times 255 would leave float32."""


class Statistics:
    """Numbers about ``w`` of shape (C, m), one row per range; each is (C, 1).

    Every property is built when it is first asked for, so a graph holds only
    what its quantizers use, and each of it once.
    """

    def __init__(self, w: Variable, fixed: bool = False) -> None:
        self.w = w
        self.fixed = fixed
        """Whether state that is not set stays so: the graph evaluates, it does not train."""

    @cached_property
    def minimum(self) -> Variable:
        return F.min(self.w, axis=1, keepdims=True)

    @cached_property
    def maximum(self) -> Variable:
        return F.max(self.w, axis=1, keepdims=True)

    @cached_property
    def range(self) -> Variable:
        """max(w) - min(w), at least :data:`TINY`."""
        return F.maximum_scalar(F.sub2(self.maximum, self.minimum), TINY)

    @cached_property
    def unit_range(self) -> Variable:
        """(w - min(w)) / range, in [0, 1]; shape (C, m)."""
        shifted = shift_rows(self.w, F.mul_scalar(self.minimum, -1.0))
        return scale_rows(shifted, F.r_div_scalar(self.range, 1.0))

    @cached_property
    def magnitude(self) -> Variable:
        """abs(w); shape (C, m)."""
        return F.abs(self.w)

    @cached_property
    def mean_magnitude(self) -> Variable:
        """E|w|."""
        return F.mean(self.magnitude, axis=1, keepdims=True)

    @cached_property
    def peak(self) -> Variable:
        """max|w|."""
        return F.max(self.magnitude, axis=1, keepdims=True)

    @cached_property
    def unit_peak(self) -> Variable:
        """w / peak (at least :data:`TINY`), in [-1, 1]; shape (C, m). Squares cannot overflow."""
        return scale_rows(self.w, F.r_div_scalar(F.maximum_scalar(self.peak, TINY), 1.0))

    @cached_property
    def unit_magnitude(self) -> Variable:
        """abs(w) / peak; shape (C, m)."""
        return F.abs(self.unit_peak)

    @cached_property
    def unit_mean(self) -> Variable:
        """E|w| / peak."""
        return F.mean(self.unit_magnitude, axis=1, keepdims=True)

    @cached_property
    def unit_rms(self) -> Variable:
        """sqrt(E[w^2]) / peak."""
        # F.sum adds in one order on every machine; a matrix product's depends on its caches.
        square = F.mul_n(self.unit_peak, self.unit_peak)
        mean_square = F.mean(square, axis=1, keepdims=True)
        # The bound keeps the derivative of the root finite for an all-zero tensor.
        return F.pow_scalar(F.maximum_scalar(mean_square, TINY), 0.5)

    @cached_property
    def one(self) -> Variable:
        """1, as (C, 1)."""
        return F.add_scalar(F.mul_scalar(self.peak, 0.0), 1.0)


def positive(number: Variable) -> Variable:
    """``abs(number)``, at least :data:`TINY`: what a learned step or clip counts as."""
    return F.maximum_scalar(F.abs(number), TINY)
