"""MobileNetV2 (Sandler et al., arXiv 1801.04381)."""

from __future__ import annotations

from typing import Callable, Sequence, Tuple

import nnabla as nn
import nnabla.functions as F

from nnabla_dqa.models.builder import Builder
from nnabla_dqa.models.resnet import projection
from nnabla_dqa.quantization.graph_ops import Variable

Stage = Tuple[int, int, int, int]
"""Expansion t, channels c, blocks n, stride s of the first block: the paper's table 2."""

STAGES: Tuple[Stage, ...] = (
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)
STAGES_32: Tuple[Stage, ...] = (STAGES[0], (6, 24, 2, 1), *STAGES[2:])

Block = Callable[[Builder, Variable, int, int, int], Variable]
"""``block(b, x, expansion, maps, stride)``."""


def mobilenetv2_224(b: Builder, x: Variable, classes: int) -> Variable:
    """MobileNetV2 for 224x224 images; 3,504,872 parameters with 1000 classes.

    As in torchvision, with its dropout of 0.2 before the last layer while
    training. Channels are rounded to multiples of 8 and the last convolution
    keeps 1280 if the width is below 1. Scopes: ``stem``,
    ``stage1/block1/depthwise`` to ``stage7/block1/project``, ``head``, ``fc``.
    """
    h = F.relu6(b.conv_bn(x, divisible(32 * b.width), 3, 2, name="stem"))
    h = _stages(b, h, STAGES, inverted_residual)
    h = F.relu6(b.conv_bn(h, divisible(1280 * max(1.0, b.width)), 1, name="head"))
    h = b.mean_pixel(h)
    return b.affine(F.dropout(h, 0.2) if b.train else h, classes, name="fc")


def mobilenetv2_32(b: Builder, x: Variable, classes: int, stem_stride: int = 1) -> Variable:
    """MobileNetV2 for 32x32 images; 2,296,922 parameters with 10 classes.

    As in github.com/kuangliu/pytorch-cifar: strides 1 in the stem and in stage
    2, ReLU, an expansion in every block, a 1x1 convolution as the shortcut of
    blocks with stride 1 that change the number of channels, no dropout. That
    code knows no width: channels are rounded as in :func:`mobilenetv2_224`, and
    the last convolution keeps 1280 too. Scopes as there, and ``shortcut``.
    """
    h = F.relu(b.conv_bn(x, divisible(32 * b.width), 3, stem_stride, name="stem"))
    h = _stages(b, h, STAGES_32, projected_residual)
    h = F.relu(b.conv_bn(h, divisible(1280 * max(1.0, b.width)), 1, name="head"))
    return b.affine(b.mean_pixel(h), classes, name="fc")


def divisible(maps: float, divisor: int = 8) -> int:
    """The multiple of ``divisor`` nearest to ``maps``, at least one and never below 90 % of it.

    The rounding of the authors' code and of torchvision.
    """
    nearest = max(divisor, int(maps + divisor / 2) // divisor * divisor)
    return nearest if nearest >= 0.9 * maps else nearest + divisor


def inverted_residual(b: Builder, x: Variable, expansion: int, maps: int, stride: int) -> Variable:
    """The paper's block: expand, depthwise, project; added to its input if the shapes agree."""
    h = x
    if expansion > 1:
        h = F.relu6(b.conv_bn(h, b.channels(x) * expansion, 1, name="expand"))
    h = F.relu6(_depthwise(b, h, stride))
    h = b.conv_bn(h, maps, 1, name="project")
    return F.add2(h, x) if stride == 1 and b.channels(x) == maps else h


def projected_residual(b: Builder, x: Variable, expansion: int, maps: int, stride: int) -> Variable:
    """The block of :func:`mobilenetv2_32`."""
    h = F.relu(b.conv_bn(x, b.channels(x) * expansion, 1, name="expand"))
    h = F.relu(_depthwise(b, h, stride))
    h = b.conv_bn(h, maps, 1, name="project")
    return F.add2(h, projection(b, x, maps, 1)) if stride == 1 else h


def _depthwise(b: Builder, h: Variable, stride: int) -> Variable:
    # NNabla's depthwise_convolution is 10 to 20 % faster on the CPU, but knows no channel_last.
    maps = b.channels(h)
    return b.conv_bn(h, maps, 3, stride, group=maps, name="depthwise")


def _stages(b: Builder, h: Variable, stages: Sequence[Stage], block: Block) -> Variable:
    for i, (expansion, maps, blocks, stride) in enumerate(stages):
        for j in range(blocks):
            with nn.parameter_scope(f"stage{i + 1}/block{j + 1}"):
                maps_here = divisible(maps * b.width)
                h = block(b, h, expansion, maps_here, stride if j == 0 else 1)
    return h
