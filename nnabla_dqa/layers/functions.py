"""NNabla's functions whose weights are quantized."""

from __future__ import annotations

from typing import Any, Mapping

WEIGHT_INPUT = 1
"""Of every function below: its input that holds the weights."""
CHANNEL_AXIS: Mapping[str, int] = {
    "Affine": -1,
    "Convolution": 0,
    "Deconvolution": 1,
    "DepthwiseConvolution": 0,
    "DepthwiseDeconvolution": 0,
    "Embed": -1,
}
"""The functions whose weights are quantized, and the axis of their output channels."""


def channel_axis(kind: str, channel_last: Any = False) -> int:
    """The axis of the output channels in the weights of a function of this type."""
    return -1 if kind == "Deconvolution" and channel_last else CHANNEL_AXIS[kind]
