"""What a deployed NNP says about its weights, so that it can be proved."""

from __future__ import annotations

from typing import Any, Dict, Mapping, Optional

import numpy as np

from nnabla_dqa.layers.report import LayerReport
from nnabla_dqa.mixing import Mixture
from nnabla_dqa.quantization import Encoded, FullPrecision, Quantizer
from nnabla_dqa.quantization.base import RowLayout


def claim(
    weight: str,
    quantizer: Quantizer,
    mixture: Mixture,
    row: LayerReport,
    grid: Optional[Encoded],
    weights: np.ndarray,
) -> Dict[str, Any]:
    """The entry of one layer in the notes of a deployed file.

    Args:
        weight: Name of the parameter.
        quantizer: The one that made the values.
        mixture: What it was chosen from.
        row: The layer when it was deployed.
        grid: Scale and offset of the values; None if they are not known.
        weights: The values, which are listed if the grid is not known.
    """
    axis = quantizer.axis
    if axis is not None:
        axis = RowLayout.of(row.shape, axis).axis
    if grid is not None and axis is None and grid.scale is not None:
        axis = next((i for i, size in enumerate(grid.scale.shape) if size > 1), None)
    entry: Dict[str, Any] = {
        "weight": weight,
        "function": row.function,
        "quantizer": quantizer.to_json(),
        "levels": quantizer.levels,
        "channel_axis": axis,
        "attention": list(row.attention),
        **mixture.to_json(),
    }
    if grid is None and not isinstance(quantizer, FullPrecision):
        rows = [weights] if axis is None else np.moveaxis(weights, axis, 0)
        entry["values"] = [[float(v) for v in np.unique(row)] for row in rows]
    if grid is not None and grid.scale is not None and grid.offset is not None:
        # Python writes float32 values as the doubles they are: they come back exactly.
        entry["scale"] = [float(v) for v in grid.scale.ravel()]
        entry["offset"] = [float(v) for v in grid.offset.ravel()]
    return entry


def grid_of(
    quantizer: Quantizer, weights: np.ndarray, state: Optional[Mapping[str, np.ndarray]] = None
) -> Optional[Encoded]:
    """Codes, scale and offset of ``weights``; None for full precision, which has none."""
    return None if quantizer.is_float else quantizer.encode(weights, state)


def distinct_values(weights: np.ndarray, axis: Optional[int]) -> int:
    """The largest number of distinct values in the tensor, or in a channel on ``axis``."""
    rows = [weights] if axis is None else np.moveaxis(weights, axis, 0)
    return max(len(np.unique(row)) for row in rows)
