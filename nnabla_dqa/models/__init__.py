"""Image classifiers whose layers are float, plain quantized or DQA by one argument."""

from __future__ import annotations

import functools
import math
from typing import Callable, Dict, Optional

import numpy as np

from nnabla_dqa.mixing import Mixture
from nnabla_dqa.models.builder import Builder, Normalization, batch_normalization
from nnabla_dqa.models.mobilenet import mobilenetv2_32, mobilenetv2_224
from nnabla_dqa.models.resnet import cifar_resnet, resnet18_32, resnet18_224
from nnabla_dqa.quantization.graph_ops import Variable

_MODELS_32: Dict[str, Callable[..., Variable]] = {
    "resnet8_32": functools.partial(cifar_resnet, depth=8),
    "resnet14_32": functools.partial(cifar_resnet, depth=14),
    "resnet20_32": functools.partial(cifar_resnet, depth=20),
    "resnet18_32": resnet18_32,
    "mobilenetv2_32": mobilenetv2_32,
}
MODELS: Dict[str, Callable[..., Variable]] = {
    **_MODELS_32,
    "resnet18_224": resnet18_224,
    "mobilenetv2_224": mobilenetv2_224,
}
"""``model(builder, x, classes)`` by name; those for 32x32 images also take ``stem_stride``."""


def build(
    name: str,
    x: Variable,
    classes: int,
    train: bool,
    mixture: Optional[Mixture] = None,
    width: float = 1.0,
    channel_last: bool = False,
    stem_stride: int = 1,
    normalization: Optional[Normalization] = None,
    rng: Optional[np.random.RandomState] = None,
) -> Variable:
    """The graph of a classifier; parameters are created in the current scope or found there.

    ``W``, ``b``, ``beta``, ``gamma``, ``mean`` and ``var`` have the same names,
    shapes and initial values whatever the mixture, so that a float checkpoint
    loads into the quantized model. With a mixture every convolution and affine
    layer is a DQA layer, the first, the last and shortcuts included.

    Args:
        name: One of :data:`MODELS`.
        x: Images (B, 3, H, W). The size in the name is the one the model was
            made for; others work.
        classes: Number of outputs.
        train: Normalize by the statistics of the batch (and drop out, where a
            model does); False: by the running statistics.
        mixture: None: NNabla's own layers; one quantizer: plain quantization;
            several: DQA or Binary-Relax.
        width: Multiplies the channel counts. ResNets round to whole numbers, at
            least 1; MobileNetV2 as its authors, see
            :func:`~nnabla_dqa.models.mobilenet.mobilenetv2_224`.
        channel_last: ``x`` is (B, H, W, 3), and ``W`` of convolutions (outputs,
            *kernel, inputs). NNabla runs it on GPUs only.
        stem_stride: Models for 32x32 images only. 1 is the published model; 2
            halves the resolution of everything at once, for experiments
            without a GPU.
        normalization: Called as ``normalization(h, train, channel_axis)`` in the
            scope of its layer instead of ``PF.batch_normalization``, for example
            for statistics of several processes.
        rng: Draws the initial weights; None: ``nnabla.random.prng``, which always
            begins with the same seed.

    Returns:
        Logits (B, classes).

    Raises:
        ValueError: An unknown name, a width that is not positive, fewer than
            one class, an ``x`` of other than 4 dimensions, or a ``stem_stride``
            that is not positive or not 1 where a model has no such option.
    """
    if name not in MODELS:
        raise ValueError(f"unknown model {name!r}; known: {', '.join(MODELS)}")
    layout = "(B, H, W, 3)" if channel_last else "(B, 3, H, W)"
    if len(x.shape) != 4:
        raise ValueError(f"{name}: x must be {layout}; got the shape {tuple(x.shape)}")
    if not (width > 0 and math.isfinite(width)):
        raise ValueError(f"{name}: width={width} is not a positive number such as 0.25")
    if classes < 1:
        raise ValueError(f"{name}: classes={classes}; at least 1 is needed")
    if stem_stride < 1:
        raise ValueError(f"{name}: stem_stride={stem_stride} is not 1, 2, ...")
    if stem_stride != 1 and name not in _MODELS_32:
        raise ValueError(
            f"{name}: stem_stride={stem_stride} is for {', '.join(_MODELS_32)} only; leave it at 1"
        )
    builder = Builder(
        train, mixture, width, channel_last, normalization or batch_normalization, rng
    )
    options = {"stem_stride": stem_stride} if name in _MODELS_32 else {}
    return MODELS[name](builder, x, classes, **options)


__all__ = ["MODELS", "Builder", "Normalization", "batch_normalization", "build", "cifar_resnet"]
