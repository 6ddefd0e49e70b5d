"""A quantized tensor of a deployed network: its integer codes and the levels they stand for."""

from __future__ import annotations

import dataclasses
import math
from functools import cached_property
from typing import Any, Mapping, NamedTuple, Optional, Tuple

import numpy as np

from nnabla_dqa._util.warn import warn
from nnabla_dqa.export.quantizer_info import QuantizerInfo
from nnabla_dqa.layers.tensors import layer_name
from nnabla_dqa.quantization import Encoded, Quantizer
from nnabla_dqa.quantization.encoding import RowLayout, code_type, codes_of


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
        array: The values, float32.
        quantizer: The one that made the values.
        channel_axis: The axis with one set of levels per index; None: one set.
        attention: The coefficients of the layer's quantizers when it was deployed.
        mixture: Those quantizers and their mixing rule, as JSON.
    """

    name: str
    function: str
    array: np.ndarray = dataclasses.field(repr=False)
    quantizer: QuantizerInfo
    channel_axis: Optional[int]
    attention: Tuple[float, ...]
    mixture: Mapping[str, Any]
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
        tensor = cls(name, function, weights, info, axis, attention, mixture)
        if info.is_float:
            return tensor
        if encoded is not None and np.array_equal(encoded.decode(), weights):
            levels = encoded.levels
            return dataclasses.replace(
                tensor,
                scale=encoded.scale,
                offset=encoded.offset,
                levels=None if levels is None else tuple(levels),
            )
        rows = RowLayout.of(weights.shape, axis).to_rows(weights)
        return dataclasses.replace(tensor, levels=tuple(np.unique(row) for row in rows))

    @property
    def layer(self) -> str:
        """The layer's name: the parameter's without ``/W``."""
        return layer_name(self.name)

    @property
    def shape(self) -> Tuple[int, ...]:
        """The shape of the tensor."""
        return tuple(self.array.shape)

    @cached_property
    def values(self) -> int:
        """The largest number of distinct values in the tensor, or in a channel."""
        return distinct_values(self.array, self.channel_axis)

    @cached_property
    def codes(self) -> Optional[np.ndarray]:
        """Unsigned integers, shaped like the tensor: of the levels next to its values."""
        if self.quantizer.is_float:
            return None
        layout = RowLayout.of(self.shape, self.channel_axis)
        if self.levels is not None:
            rows = zip(self.levels, layout.to_rows(self.array))
            return layout.from_rows(np.stack([codes_of(levels, row) for levels, row in rows]))
        assert self.scale is not None
        assert self.offset is not None
        safe = np.where(self.scale == 0, 1.0, self.scale.astype(np.float64))
        codes = np.rint((self.array.astype(np.float64) - self.offset) / safe)
        codes = np.clip(np.nan_to_num(codes), 0, self.quantizer.levels - 1)
        whole: np.ndarray = codes.astype(code_type(self.quantizer.levels))
        return whole

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
        warn(
            "report of a deployed layer is deprecated; use its layer, weights and attention",
            DeprecationWarning,
        )
        return _Report(self.layer, self.function, self.shape, self.weights, self.attention)

    def decode(self) -> np.ndarray:
        """The levels of the codes, float32: bit for bit ``array``, unless that is at fault.

        Raises:
            ValueError: It is a float tensor, which has no codes.
        """
        if self.codes is None:
            raise ValueError(f"{self.name}: is a float tensor and has no codes")
        return self._levels_of(self.codes)

    def _levels_of(self, codes: np.ndarray) -> np.ndarray:
        if self.levels is None:
            assert self.scale is not None
            assert self.offset is not None
            weights: np.ndarray = codes.astype(np.float32) * self.scale + self.offset
            return weights
        layout = RowLayout.of(self.shape, self.channel_axis)
        rows = zip(self.levels, layout.to_rows(codes))
        return layout.from_rows(np.stack([levels[row] for levels, row in rows]))

    def scaled(self, gain: np.ndarray, axis: int) -> DeployedTensor:
        """The tensor with channel ``i`` of ``axis`` multiplied by ``gain[i]``.

        The codes stay; scale and offset, or levels, are multiplied. ``axis``
        must be ``channel_axis`` if that is not None.
        """
        shape = [1] * self.array.ndim
        shape[axis] = gain.size
        factor = gain.reshape(shape)
        if self.codes is None:
            return dataclasses.replace(self, array=self.array * factor)
        if self.levels is not None:
            rows = self.levels * gain.size if len(self.levels) == 1 else self.levels
            levels = tuple(row * g for row, g in zip(rows, gain.ravel()))
            made = dataclasses.replace(self, channel_axis=axis, levels=levels)
        else:
            assert self.scale is not None
            assert self.offset is not None
            made = dataclasses.replace(
                self, channel_axis=axis, scale=self.scale * factor, offset=self.offset * factor
            )
        return dataclasses.replace(made, array=made._levels_of(self.codes))

    def fault(self) -> str:
        """What is wrong if the values are not bit for bit on the levels; else ''."""
        if self.quantizer.is_float:
            return ""
        if self.values > self.quantizer.levels:
            return f"{self.values} distinct values, {self.quantizer.levels} allowed"
        wrong = np.argwhere(self.decode() != self.array)
        if len(wrong):
            at = tuple(int(i) for i in wrong[0])
            return f"{len(wrong)} weights off the grid, the first at {at}: {self.array[at]!r}"
        return ""


def distinct_values(weights: np.ndarray, axis: Optional[int]) -> int:
    """The largest number of distinct values in the tensor, or in a channel on ``axis``."""
    return max(len(np.unique(row)) for row in RowLayout.of(weights.shape, axis).to_rows(weights))
