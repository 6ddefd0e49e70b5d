"""A quantized tensor of a deployed network: its integer codes and the levels they stand for."""

from __future__ import annotations

import dataclasses
import math
import warnings
from typing import Any, Mapping, NamedTuple, Optional, Tuple

import numpy as np

from nnabla_dqa.export.quantizer_info import QuantizerInfo
from nnabla_dqa.layers.tensors import layer_name
from nnabla_dqa.quantization import Encoded, Quantizer
from nnabla_dqa.quantization.base import RowLayout


class _Report(NamedTuple):
    name: str
    function: str
    shape: Tuple[int, ...]
    weights: int
    shares: Tuple[float, ...]


@dataclasses.dataclass(frozen=True, eq=False)
class DeployedTensor:
    """Weights that lie on the levels of one quantizer.

    Evenly spaced levels are ``scale * codes + offset`` in float32; ``scale``
    and ``offset`` have the number of axes of the tensor and size 1 on all but
    ``channel_axis``. Any other set of levels is ``levels``: a row of values
    for the tensor, or for each index of ``channel_axis``, of which ``codes``
    are the indices. A float tensor has none of these.

    Attributes:
        name: The parameter, such as ``conv1/conv/W``.
        function: NNabla's name of what uses it.
        shape: Of the tensor.
        quantizer: The one that made the values.
        channel_axis: The axis with one set of levels per index; None: one set.
        attention: The coefficients of the layer's quantizers when it was deployed.
        mixture: Those quantizers and their mixing rule, as JSON.
        values: The largest number of distinct values in the tensor, or in a channel.
        codes: Unsigned integers, shaped like the tensor.
    """

    name: str
    function: str
    shape: Tuple[int, ...]
    quantizer: QuantizerInfo
    channel_axis: Optional[int]
    attention: Tuple[float, ...]
    mixture: Mapping[str, Any]
    values: int
    codes: Optional[np.ndarray] = None
    scale: Optional[np.ndarray] = None
    offset: Optional[np.ndarray] = None
    levels: Optional[Tuple[np.ndarray, ...]] = None

    @classmethod
    def of(
        cls,
        name: str,
        function: str,
        quantizer: Quantizer,
        mixture: Mapping[str, Any],
        attention: Tuple[float, ...],
        weights: np.ndarray,
        encoded: Optional[Encoded],
    ) -> DeployedTensor:
        """The tensor with these values.

        Args:
            name, function, mixture, attention: As of the class.
            quantizer: What made the values.
            weights: The values.
            encoded: Their integer codes; if they do not decode to ``weights``,
                or are not known, the values found are the levels.
        """
        axis = RowLayout.of(weights.shape, quantizer.axis).axis
        info = QuantizerInfo.of(quantizer)
        values = distinct_values(weights, axis)
        tensor = cls(name, function, tuple(weights.shape), info, axis, attention, mixture, values)
        if info.is_float:
            return tensor
        if encoded is not None and np.array_equal(encoded.decode(), weights):
            levels = getattr(encoded, "levels", None)
            return dataclasses.replace(
                tensor,
                codes=encoded.codes,
                scale=encoded.scale,
                offset=encoded.offset,
                levels=None if levels is None else tuple(levels),
            )
        rows = RowLayout.of(weights.shape, axis).to_rows(weights)
        found = dataclasses.replace(tensor, levels=tuple(np.unique(row) for row in rows))
        return dataclasses.replace(found, codes=found.nearest_codes(weights))

    @property
    def layer(self) -> str:
        """The layer's name: the parameter's without ``/W``."""
        return layer_name(self.name)

    @property
    def bits(self) -> int:
        """Bits of the quantizer."""
        return self.quantizer.bits

    @property
    def weights(self) -> int:
        """The number of weights."""
        return math.prod(self.shape)

    @property
    def groups(self) -> int:
        """The number of sets of levels: 1, or one for each channel."""
        return RowLayout.of(self.shape, self.channel_axis).rows

    @property
    def report(self) -> _Report:
        """Deprecated: use ``layer``, ``function``, ``shape``, ``weights`` and ``attention``."""
        warnings.warn(
            "report of a deployed layer is deprecated; use its layer, weights and attention",
            DeprecationWarning,
            stacklevel=2,
        )
        return _Report(self.layer, self.function, self.shape, self.weights, self.attention)

    def decode(self) -> np.ndarray:
        """The values of the tensor, float32.

        Raises:
            ValueError: It is a float tensor, which has no codes.
        """
        if self.codes is None:
            raise ValueError(f"{self.name}: is a float tensor and has no codes")
        weights: np.ndarray
        if self.levels is None:
            assert self.scale is not None
            assert self.offset is not None
            weights = self.codes.astype(np.float32) * self.scale + self.offset
            return weights
        layout = RowLayout.of(self.shape, self.channel_axis)
        rows = zip(self.levels, layout.to_rows(self.codes))
        weights = layout.from_rows(np.stack([levels[codes] for levels, codes in rows]))
        return weights

    def nearest_codes(self, weights: np.ndarray) -> np.ndarray:
        """The codes of the levels next to ``weights``."""
        if self.levels is not None:
            layout = RowLayout.of(self.shape, self.channel_axis)
            rows = zip(self.levels, layout.to_rows(weights))
            return layout.from_rows(np.stack([_nearest(levels, row) for levels, row in rows]))
        assert self.scale is not None
        assert self.offset is not None
        safe = np.where(self.scale == 0, 1.0, self.scale.astype(np.float64))
        codes = np.rint((weights.astype(np.float64) - self.offset) / safe)
        codes = np.clip(np.nan_to_num(codes), 0, self.quantizer.levels - 1)
        whole: np.ndarray = codes.astype(np.uint8 if self.bits <= 8 else np.uint32)
        return whole

    def scaled(self, gain: np.ndarray, axis: int) -> DeployedTensor:
        """The tensor with channel ``i`` of ``axis`` multiplied by ``gain[i]``.

        ``axis`` must be ``channel_axis`` if that is not None.
        """
        if self.codes is None:
            return self
        shape = [1] * len(self.shape)
        shape[axis] = gain.size
        if self.levels is not None:
            rows = self.levels * gain.size if len(self.levels) == 1 else self.levels
            levels = tuple(row * factor for row, factor in zip(rows, gain.ravel()))
            return self._remade(axis, levels=levels)
        assert self.scale is not None
        assert self.offset is not None
        factor = gain.reshape(shape)
        return self._remade(axis, scale=self.scale * factor, offset=self.offset * factor)

    def _remade(self, axis: int, **changes: Any) -> DeployedTensor:
        made = dataclasses.replace(self, channel_axis=axis, **changes)
        return dataclasses.replace(made, values=distinct_values(made.decode(), axis))

    def fault(self, weights: np.ndarray) -> str:
        """What is wrong if ``weights`` are not bit for bit on the tensor's levels; else ''."""
        if self.quantizer.is_float:
            return ""
        if self.values > self.quantizer.levels:
            return f"{self.values} distinct values, {self.quantizer.levels} allowed"
        wrong = np.argwhere(self.decode() != weights)
        if len(wrong):
            at = tuple(int(i) for i in wrong[0])
            return f"{len(wrong)} weights off the grid, the first at {at}: {weights[at]!r}"
        return ""


def distinct_values(weights: np.ndarray, axis: Optional[int]) -> int:
    """The largest number of distinct values in the tensor, or in a channel on ``axis``."""
    return max(len(np.unique(row)) for row in RowLayout.of(weights.shape, axis).to_rows(weights))


def _nearest(levels: np.ndarray, row: np.ndarray) -> np.ndarray:
    order = np.argsort(levels)
    above = np.clip(np.searchsorted(levels[order], row), 0, levels.size - 1)
    codes: np.ndarray = order[above].astype(np.uint8 if levels.size <= 256 else np.uint32)
    return codes
