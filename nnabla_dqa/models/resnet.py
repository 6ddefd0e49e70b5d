"""Residual networks (He et al., arXiv 1512.03385) of basic blocks."""

from __future__ import annotations

from typing import Callable, Sequence

import nnabla as nn
import nnabla.functions as F

from nnabla_dqa.models.builder import Builder
from nnabla_dqa.quantization.graph_ops import Variable

Shortcut = Callable[[Builder, Variable, int, int], Variable]
"""``shortcut(b, h, maps, stride)``: the input of a block in the shape of its output."""


def resnet18_32(b: Builder, x: Variable, classes: int, stem_stride: int = 1) -> Variable:
    """ResNet-18 for 32x32 images: 3x3 stem, no pooling; 11,173,962 parameters, 10 classes.

    As in github.com/kuangliu/pytorch-cifar. Scopes: ``stem``, ``stage1/block1/conv1``
    to ``stage4/block2/conv2``, ``shortcut`` where a block changes the shape, ``fc``.
    """
    h = F.relu(b.conv_bn(x, _maps(b, 64), 3, stem_stride, name="stem"))
    h = _stages(b, h, (64, 128, 256, 512), 2, projection)
    return b.affine(b.mean_pixel(h), classes, name="fc")


def resnet18_224(b: Builder, x: Variable, classes: int) -> Variable:
    """ResNet-18 for 224x224 images: 7x7/2 stem, pooling; 11,689,512 parameters, 1000 classes.

    As in the paper and in torchvision. Scopes as in :func:`resnet18_32`.
    """
    h = F.relu(b.conv_bn(x, _maps(b, 64), 7, 2, name="stem"))
    h = b.max_pooling(h, 3, 2)
    h = _stages(b, h, (64, 128, 256, 512), 2, projection)
    return b.affine(b.mean_pixel(h), classes, name="fc")


def cifar_resnet(
    b: Builder, x: Variable, classes: int, stem_stride: int = 1, depth: int = 20
) -> Variable:
    """The paper's ResNet for CIFAR-10 (section 4.2), shortcuts without parameters (option A).

    ``depth`` is 6n + 2: three stages of n blocks with 16, 32 and 64 channels.
    ResNet-20 has 269,722 parameters with 10 classes, as in
    github.com/akamaster/pytorch_resnet_cifar10.

    Raises:
        ValueError: ``depth`` is not 8, 14, 20, ...
    """
    if depth < 8 or depth % 6 != 2:
        raise ValueError(f"depth={depth} is not 6n + 2, such as 8, 14, 20, 32, 44, 56, 110")
    h = F.relu(b.conv_bn(x, _maps(b, 16), 3, stem_stride, name="stem"))
    h = _stages(b, h, (16, 32, 64), (depth - 2) // 6, zero_padding)
    return b.affine(b.mean_pixel(h), classes, name="fc")


def projection(b: Builder, h: Variable, maps: int, stride: int) -> Variable:
    """1x1 convolution and normalization where the shape changes (the paper's option B)."""
    if stride == 1 and b.channels(h) == maps:
        return h
    return b.conv_bn(h, maps, 1, stride, name="shortcut")


def zero_padding(b: Builder, h: Variable, maps: int, stride: int) -> Variable:
    """Every ``stride``-th pixel, between channels of zeros (the paper's option A)."""
    return b.zero_channels(b.subsample(h, stride), maps)


def _maps(b: Builder, published: int) -> int:
    return max(1, round(published * b.width))


def _stages(
    b: Builder, h: Variable, maps: Sequence[int], blocks: int, shortcut: Shortcut
) -> Variable:
    for i, published in enumerate(maps):
        for j in range(blocks):
            with nn.parameter_scope(f"stage{i + 1}/block{j + 1}"):
                h = _block(b, h, _maps(b, published), 2 if i > 0 and j == 0 else 1, shortcut)
    return h


def _block(b: Builder, x: Variable, maps: int, stride: int, shortcut: Shortcut) -> Variable:
    h = F.relu(b.conv_bn(x, maps, 3, stride, name="conv1"))
    h = b.conv_bn(h, maps, 3, name="conv2")
    return F.relu(F.add2(h, shortcut(b, x, maps, stride)))
