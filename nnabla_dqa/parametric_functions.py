"""NNabla's parametric functions, plus layers whose weights go through a quantizer mixture.

``import nnabla_dqa.parametric_functions as PF`` offers everything of
``nnabla.parametric_functions`` and ``dqa_convolution``, ``dqa_affine``,
``dqa_depthwise_convolution``, ``dqa_deconvolution``,
``dqa_depthwise_deconvolution`` and ``dqa_embed``. Once ``nnabla_dqa`` is
imported, these are available from ``nnabla.parametric_functions`` too.

A ``dqa_`` layer takes all arguments of its float counterpart with their
meaning and registers ``W`` and ``b`` under the same names, so that a float
checkpoint loads into it and the other way round. Its state is registered
beside them in a scope ``dqa``; see :mod:`nnabla_dqa.layers.tensors`.
"""

from __future__ import annotations

from typing import Any, Callable, Optional, Tuple, Union

import nnabla.functions as F
import nnabla.parametric_functions as _PF
import numpy as np
from nnabla.initializer import ConstantInitializer, UniformInitializer, calc_uniform_lim_glorot
from nnabla.parameter import get_parameter_or_create
from nnabla.parametric_functions import *  # noqa: F403

from nnabla_dqa.layers.build import Apply, Quantizers, mixer
from nnabla_dqa.mixing import MixingRule
from nnabla_dqa.quantization.graph_ops import Variable

Initializer = Any


_STATE = [
    ("W", "Float weights, as in NNabla's own layer", "as in NNabla's own layer", True),
    ("b", "Bias, as in NNabla's own layer", "as in NNabla's own layer", True),
    ("dqa/alpha", "Attention (rule Attention, two or more quantizers)", "(K,)", True),
    ("dqa/temperature", "Temperature (rule Attention)", "(1,)", False),
    ("dqa/omega", "Growth factor (rule BinaryRelax)", "(1,)", False),
    ("dqa/hard", "Zeros, or one-hot: this quantizer alone", "(K,)", False),
    ("dqa/quantizers", "Bit widths and a checksum, to tell sets apart", "(K + 1,)", False),
]
_ARGUMENTS = """

    All arguments of :func:`nnabla.parametric_functions.{base}`, which it
    replaces, and:

    Args:
        quantizers (sequence of Quantizer): From the lowest to the highest bit
            width; default: those of the enclosing ``with dqa.quantizers(...)``.
        mixing (MixingRule): How they are mixed; default: that of the enclosing
            block, else ``Attention()``, or ``Single()`` for one quantizer.

    Returns:
        ~nnabla.Variable: As of :func:`nnabla.parametric_functions.{base}`.

    Raises:
        ValueError: No quantizers, a set that cannot be mixed, a channel axis
            that the weights do not have, or a layer of this name with another
            set. The message names the layer.
    """


def _parametric(base: str, scope: str) -> Callable[[Callable[..., Any]], Callable[..., Variable]]:
    """NNabla's decorator, with the documentation that all these layers share."""

    def decorate(function: Callable[..., Any]) -> Callable[..., Variable]:
        function.__doc__ = (function.__doc__ or "") + _ARGUMENTS.format(base=base)
        decorated: Callable[..., Variable] = _PF.parametric_function_api(scope, _STATE)(function)
        decorated.__module__ = __name__
        return decorated

    return decorate


def _native(base: str) -> Callable[..., Variable]:
    """NNabla's own layer without its scope, which the caller has entered already."""
    function: Callable[..., Variable] = getattr(_PF, base).__parametric_function_api_base__
    return function


@_parametric("affine", "affine")
def dqa_affine(
    inp: Variable,
    n_outmaps: Union[int, Tuple[int, ...]],
    base_axis: int = 1,
    w_init: Initializer = None,
    b_init: Initializer = None,
    fix_parameters: bool = False,
    rng: Optional[np.random.RandomState] = None,
    with_bias: bool = True,
    apply_w: Apply = None,
    apply_b: Apply = None,
    quantizers: Quantizers = None,
    mixing: Optional[MixingRule] = None,
) -> Variable:
    """Affine layer ``y = x q(W) + b``, ``q = sum_k a_k Q_k(W)`` (arXiv 2103.13322, eq. 2).

    ``W`` is (inputs, outputs): its output channels are axis 1."""
    apply = mixer("Affine", inp, quantizers, mixing, fix_parameters, apply_w)
    return _native("affine")(
        inp, n_outmaps, base_axis, w_init, b_init, fix_parameters, rng, with_bias, apply, apply_b
    )


@_parametric("convolution", "conv")
def dqa_convolution(
    inp: Variable,
    outmaps: int,
    kernel: Tuple[int, ...],
    pad: Optional[Tuple[int, ...]] = None,
    stride: Optional[Tuple[int, ...]] = None,
    dilation: Optional[Tuple[int, ...]] = None,
    group: int = 1,
    channel_last: bool = False,
    w_init: Initializer = None,
    b_init: Initializer = None,
    base_axis: int = 1,
    fix_parameters: bool = False,
    rng: Optional[np.random.RandomState] = None,
    with_bias: bool = True,
    apply_w: Apply = None,
    apply_b: Apply = None,
    quantizers: Quantizers = None,
    mixing: Optional[MixingRule] = None,
) -> Variable:
    """N-D convolution with ``q = sum_k a_k Q_k(W)`` (arXiv 2103.13322, eq. 2) as its kernel.

    ``W`` is (outputs, inputs / group, *kernel), with ``channel_last``
    (outputs, *kernel, inputs / group): its output channels are axis 0."""
    apply = mixer("Convolution", inp, quantizers, mixing, fix_parameters, apply_w)
    return _native("convolution")(
        inp, outmaps, kernel, pad, stride, dilation, group, channel_last, w_init, b_init,
        base_axis, fix_parameters, rng, with_bias, apply, apply_b,
    )  # fmt: skip


@_parametric("deconvolution", "deconv")
def dqa_deconvolution(
    inp: Variable,
    outmaps: int,
    kernel: Tuple[int, ...],
    pad: Optional[Tuple[int, ...]] = None,
    stride: Optional[Tuple[int, ...]] = None,
    dilation: Optional[Tuple[int, ...]] = None,
    group: int = 1,
    channel_last: bool = False,
    output_padding: Optional[Tuple[int, ...]] = None,
    w_init: Initializer = None,
    b_init: Initializer = None,
    base_axis: int = 1,
    fix_parameters: bool = False,
    rng: Optional[np.random.RandomState] = None,
    with_bias: bool = True,
    apply_w: Apply = None,
    apply_b: Apply = None,
    quantizers: Quantizers = None,
    mixing: Optional[MixingRule] = None,
) -> Variable:
    """N-D transposed convolution with ``q = sum_k a_k Q_k(W)`` (arXiv 2103.13322, eq. 2).

    ``W`` is (inputs, outputs / group, *kernel): its output channels are axis 1."""
    apply = mixer("Deconvolution", inp, quantizers, mixing, fix_parameters, apply_w)
    return _native("deconvolution")(
        inp, outmaps, kernel, pad, stride, dilation, group, channel_last, output_padding, w_init,
        b_init, base_axis, fix_parameters, rng, with_bias, apply, apply_b,
    )  # fmt: skip


@_parametric("depthwise_convolution", "depthwise_conv")
def dqa_depthwise_convolution(
    inp: Variable,
    kernel: Tuple[int, ...],
    pad: Optional[Tuple[int, ...]] = None,
    stride: Optional[Tuple[int, ...]] = None,
    dilation: Optional[Tuple[int, ...]] = None,
    multiplier: int = 1,
    w_init: Initializer = None,
    b_init: Initializer = None,
    base_axis: int = 1,
    fix_parameters: bool = False,
    rng: Optional[np.random.RandomState] = None,
    with_bias: bool = True,
    quantizers: Quantizers = None,
    mixing: Optional[MixingRule] = None,
) -> Variable:
    """N-D depthwise convolution with ``q = sum_k a_k Q_k(W)`` (arXiv 2103.13322, eq. 2).

    ``W`` is (channels * multiplier, *kernel): its output channels are axis 0."""
    channels = inp.shape[base_axis]
    w, b = _depthwise_parameters(
        kernel, channels, channels * multiplier, channels * multiplier,
        w_init, b_init, fix_parameters, rng, with_bias,
    )  # fmt: skip
    w = mixer("DepthwiseConvolution", inp, quantizers, mixing, fix_parameters, None)(w)
    return F.depthwise_convolution(inp, w, b, base_axis, pad, stride, dilation, multiplier)


@_parametric("depthwise_deconvolution", "depthwise_deconv")
def dqa_depthwise_deconvolution(
    inp: Variable,
    kernel: Tuple[int, ...],
    pad: Optional[Tuple[int, ...]] = None,
    stride: Optional[Tuple[int, ...]] = None,
    dilation: Optional[Tuple[int, ...]] = None,
    divisor: int = 1,
    w_init: Initializer = None,
    b_init: Initializer = None,
    base_axis: int = 1,
    fix_parameters: bool = False,
    rng: Optional[np.random.RandomState] = None,
    with_bias: bool = True,
    quantizers: Quantizers = None,
    mixing: Optional[MixingRule] = None,
) -> Variable:
    """N-D depthwise transposed convolution with ``q = sum_k a_k Q_k(W)`` (arXiv 2103.13322, eq. 2).

    ``W`` is (channels, *kernel): its channels are axis 0."""
    channels = inp.shape[base_axis]
    w, b = _depthwise_parameters(
        kernel, channels, channels, channels // divisor,
        w_init, b_init, fix_parameters, rng, with_bias,
    )  # fmt: skip
    w = mixer("DepthwiseDeconvolution", inp, quantizers, mixing, fix_parameters, None)(w)
    return F.depthwise_deconvolution(inp, w, b, base_axis, pad, stride, dilation, divisor)


def _depthwise_parameters(
    kernel: Tuple[int, ...],
    channels: int,
    maps: int,
    biases: int,
    w_init: Initializer,
    b_init: Initializer,
    fix_parameters: bool,
    rng: Optional[np.random.RandomState],
    with_bias: bool,
) -> Tuple[Variable, Optional[Variable]]:
    """W and b as NNabla's depthwise layers register them; those take no ``apply_w``."""
    if w_init is None:
        limits = calc_uniform_lim_glorot(maps, channels, tuple(kernel))
        w_init = UniformInitializer(limits, rng=rng)
    w = get_parameter_or_create("W", (maps, *kernel), w_init, True, not fix_parameters)
    if not with_bias:
        return w, None
    b_init = ConstantInitializer() if b_init is None else b_init
    return w, get_parameter_or_create("b", (biases,), b_init, True, not fix_parameters)


@_parametric("embed", "embed")
def dqa_embed(
    inp: Variable,
    n_inputs: int,
    n_features: int,
    initializer: Initializer = None,
    fix_parameters: bool = False,
    apply_w: Apply = None,
    quantizers: Quantizers = None,
    mixing: Optional[MixingRule] = None,
) -> Variable:
    """Embedding whose table is ``q = sum_k a_k Q_k(W)`` (arXiv 2103.13322, eq. 2).

    ``W`` is (inputs, features): its rows are axis 0."""
    apply = mixer("Embed", inp, quantizers, mixing, fix_parameters, apply_w)
    return _native("embed")(inp, n_inputs, n_features, initializer, fix_parameters, apply)


DQA_LAYERS = (
    dqa_affine,
    dqa_convolution,
    dqa_deconvolution,
    dqa_depthwise_convolution,
    dqa_depthwise_deconvolution,
    dqa_embed,
)


def install() -> None:
    """Make the layers available from ``nnabla.parametric_functions``; done on import."""
    for layer in DQA_LAYERS:
        setattr(_PF, layer.__name__, layer)
