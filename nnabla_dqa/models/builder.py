"""What all layers of a model have in common, so that the models read like the papers' tables."""

from __future__ import annotations

import dataclasses
from typing import Any, Callable, Dict, Optional, Tuple

import nnabla as nn
import nnabla.functions as F
import nnabla.parametric_functions as NPF
import numpy as np
from nnabla.initializer import NormalInitializer, UniformInitializer, calc_normal_std_he_backward

import nnabla_dqa.parametric_functions as PF
from nnabla_dqa.mixing import Mixture
from nnabla_dqa.quantization.graph_ops import Variable

Normalization = Callable[[Variable, bool, int], Variable]
"""``normalization(h, train, channel_axis)``, called in the parameter scope of its layer."""


def batch_normalization(h: Variable, train: bool, channel_axis: int) -> Variable:
    """NNabla's own, with its defaults: decay rate 0.9, eps 1e-5."""
    return NPF.batch_normalization(h, axes=[channel_axis], batch_stat=train)


@dataclasses.dataclass(frozen=True)
class Builder:
    """Makes layers that are float without a mixture and DQA layers with one.

    Attributes:
        train: Batch statistics and dropout, as in training.
        mixture: None for NNabla's own layers.
        width: What a model multiplies its channel counts by.
        channel_last: Images are (B, H, W, C) instead of (B, C, H, W).
        normalization: Normalizes the output of each convolution.
        rng: Draws the initial weights; None: ``nnabla.random.prng``.
    """

    train: bool
    mixture: Optional[Mixture] = None
    width: float = 1.0
    channel_last: bool = False
    normalization: Normalization = batch_normalization
    rng: Optional[np.random.RandomState] = None

    @property
    def channel_axis(self) -> int:
        """The axis of the channels of an image."""
        return 3 if self.channel_last else 1

    def channels(self, h: Variable) -> int:
        """The number of channels of ``h``."""
        count: int = h.shape[self.channel_axis]
        return count

    def conv_bn(
        self, h: Variable, maps: int, kernel: int, stride: int = 1, group: int = 1, *, name: str
    ) -> Variable:
        """Convolution without bias, padded by ``kernel // 2``, then normalization.

        The weights are drawn from N(0, 2 / (maps * kernel^2)): He et al.
        (arXiv 1502.01852) for the backward pass, as torchvision does.
        """
        shape = (kernel, kernel)
        deviation = calc_normal_std_he_backward(self.channels(h), maps, shape)
        h = self._layer("convolution")(
            h, maps, shape, pad=(kernel // 2,) * 2, stride=(stride, stride), group=group,
            channel_last=self.channel_last, w_init=NormalInitializer(deviation, self.rng),
            with_bias=False, name=name, **self._mixing(),
        )  # fmt: skip
        with nn.parameter_scope(name):
            return self.normalization(h, self.train, self.channel_axis)

    def affine(self, h: Variable, outputs: int, *, name: str) -> Variable:
        """Affine layer with bias.

        The weights are drawn from U(-1/sqrt(inputs), 1/sqrt(inputs)), PyTorch's
        default; the biases begin at 0.
        """
        limit = 1 / np.sqrt(np.prod(h.shape[1:]))
        weights = UniformInitializer((-limit, limit), self.rng)
        return self._layer("affine")(h, outputs, w_init=weights, name=name, **self._mixing())

    def max_pooling(self, h: Variable, kernel: int, stride: int) -> Variable:
        """Maximum over windows, padded by ``kernel // 2``."""
        return F.max_pooling(
            h, (kernel,) * 2, (stride,) * 2, pad=(kernel // 2,) * 2, channel_last=self.channel_last
        )

    def subsample(self, h: Variable, stride: int) -> Variable:
        """Every ``stride``-th pixel, from the first on."""
        if stride == 1:
            return h
        # A slice would write the batch size into saved networks.
        return F.average_pooling(h, (1, 1), (stride, stride), channel_last=self.channel_last)

    def zero_channels(self, h: Variable, maps: int) -> Variable:
        """``h`` between channels of zeros, ``maps`` channels in all."""
        missing = maps - self.channels(h)
        if missing == 0:
            return h
        padding = (missing // 2, missing - missing // 2)
        return F.pad(h, padding if self.channel_last else (*padding, 0, 0, 0, 0))

    def mean_pixel(self, h: Variable) -> Variable:
        """The mean over height and width, which become 1."""
        # F.global_average_pooling has no CUDA version.
        size: Tuple[int, ...] = h.shape[1:3] if self.channel_last else h.shape[2:]
        return F.average_pooling(h, size, channel_last=self.channel_last)

    def _layer(self, function: str) -> Callable[..., Variable]:
        name = function if self.mixture is None else f"dqa_{function}"
        layer: Callable[..., Variable] = getattr(PF, name)
        return layer

    def _mixing(self) -> Dict[str, Any]:
        if self.mixture is None:
            return {}
        return {"quantizers": self.mixture.quantizers, "mixing": self.mixture.mixing}
