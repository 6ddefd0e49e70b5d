"""NNabla's functions as layers of a plan."""

from __future__ import annotations

import math
from typing import Any, Callable, Dict, List, NamedTuple, Optional, Sequence, Tuple

from nnabla_dqa.backends.fused import NAME as MIXTURE
from nnabla_dqa.backends.fused_activations import NAME as ACTIVATIONS
from nnabla_dqa.onednn import mixtures
from nnabla_dqa.onednn.builder import Builder
from nnabla_dqa.onednn.program import Dims, Kind

Shape = Tuple[int, ...]


class Rule(NamedTuple):
    """How one type of function becomes layers.

    Attributes:
        refuses: Why a function of the type has to stay NNabla's, empty if it need not.
        lower: Adds its layers.
        probes: Whether oneDNN has to be asked if it computes it.
    """

    refuses: Callable[[Any], str]
    lower: Callable[[Builder, Any], None]
    probes: bool = False


def _three(values: Sequence[int], fill: int) -> List[int]:
    """The numbers of up to three axes as those of three, the last ones."""
    return [fill] * (3 - len(values)) + list(values)


# -- convolutions and affine layers ---------------------------------------------------------

_KINDS = {
    "Convolution": Kind.CONVOLUTION,
    "DepthwiseConvolution": Kind.CONVOLUTION,
    "Deconvolution": Kind.DECONVOLUTION,
}


def _refuses_convolution(f: Any) -> str:
    axes = f.inputs[0].ndim - f.info.args["base_axis"] - 1
    if not 1 <= axes <= 3:
        return f"it has {axes} spatial axes"
    return ""


def _convolution(b: Builder, f: Any) -> None:
    args = f.info.args
    x, w, *bias = f.inputs
    y = f.outputs[0]
    base, last = args["base_axis"], bool(args.get("channel_last", False))
    depthwise = f.info.type_name == "DepthwiseConvolution"
    x_dims, y_dims = _dims(x.shape, base, last), _dims(y.shape, base, last)
    kernel = w.shape[1:] if depthwise else _spatial(w.shape, 1, last)
    groups = x_dims.channels if depthwise else args["group"]
    stride, dilation, pad = (list(args[name]) for name in ("stride", "dilation", "pad"))
    x_size, y_size = _spatial(x.shape, base, last), _spatial(y.shape, base, last)
    small, large = (
        (x_size, y_size) if _KINDS[f.info.type_name] == Kind.DECONVOLUTION else (y_size, x_size)
    )
    # NNabla ignores what is left over behind the last step; oneDNN wants to know it.
    after = [
        (s - 1) * step + (k - 1) * d + 1 - size - p
        for s, step, k, d, size, p in zip(small, stride, kernel, dilation, large, pad)
    ]
    b.plan.layer(
        _KINDS[f.info.type_name],
        [
            b.flat(x, x_dims) if last else b.turned(x, x_dims),
            b.flat(w),
            *[b.flat(v) for v in bias],
        ],
        [b.new_flat(y, y_dims) if last else b.new_turned(y, y_dims)],
        {
            0: [len(kernel), groups],
            2: x_size,
            5: kernel,
            8: stride,
            11: dilation,
            14: pad,
            17: after,
            20: y_size,
            23: [last],
        },
    )


def _dims(shape: Shape, base: int, last: bool) -> Dims:
    channels = shape[-1] if last else shape[base]
    samples = math.prod(shape[:base])
    return Dims(samples, math.prod(shape) // max(1, samples * channels), channels)


def _spatial(shape: Shape, base: int, last: bool) -> List[int]:
    return list(shape[base:-1] if last else shape[base + 1 :])


def _affine(b: Builder, f: Any) -> None:
    x, w, *bias = f.inputs
    y = f.outputs[0]
    base = f.info.args["base_axis"]
    samples = math.prod(x.shape[:base])
    inputs, outputs = math.prod(x.shape[base:]), y.size // max(1, samples)
    b.plan.layer(
        Kind.AFFINE,
        [b.flat(x, Dims(samples, 1, inputs)), b.flat(w), *[b.flat(v) for v in bias]],
        [b.new_flat(y, Dims(samples, 1, outputs))],
    )


# -- normalization and pooling ----------------------------------------------------------------


def _refuses_normalization(f: Any) -> str:
    axes, ndim = f.info.args["axes"], f.inputs[0].ndim
    if len(f.outputs) > 1:
        return "its statistics are outputs"
    if len(axes) != 1 or axes[0] not in (1, ndim - 1):
        return f"it normalizes over the axes other than {list(axes)}"
    return ""


class Fused(NamedTuple):
    """What follows a layer and is computed with it.

    Attributes:
        output: The variable at its end.
        relu: Whether a ReLU is there.
        residual: What is added before it.
    """

    output: Any
    relu: bool = False
    residual: Optional[Any] = None


def normalization(b: Builder, f: Any, fused: Optional[Fused] = None) -> None:
    """Batch normalization, with what follows it."""
    args = f.info.args
    fused = fused or Fused(f.outputs[0])
    x, *rest = f.inputs
    beta = None if args["no_bias"] else rest.pop(0)
    gamma = None if args["no_scale"] else rest.pop(0)
    axis = args["axes"][0]
    dims = _dims(x.shape, 1, axis == x.ndim - 1 and axis != 1)
    flat = axis != 1
    place = b.flat if flat else b.turned
    source = place(x, dims)
    residual = None if fused.residual is None else place(fused.residual, dims)
    target = b.new_flat(fused.output, dims) if flat else b.new_turned(fused.output, dims)
    state = [None if v is None else b.flat(v) for v in (beta, gamma)]
    state += [b.state(v) for v in rest]
    b.plan.layer(
        Kind.NORMALIZATION,
        [source, *state, residual],
        [target],
        {0: [args["batch_stat"], fused.relu]},
        [args["decay_rate"], args["eps"]],
    )


def _refuses_pooling(f: Any) -> str:
    args, x = f.info.args, f.inputs[0]
    kernel = args.get("kernel")
    if kernel is None:
        return "" if x.ndim == 4 else f"its input has {x.ndim} axes"
    if not 1 <= len(kernel) <= 3 or x.ndim < len(kernel) + 2:
        return f"its input has {x.ndim} axes and its window {len(kernel)}"
    if any(pad >= size for pad, size in zip(args["pad"], kernel)):
        return f"a window of {list(kernel)} fits into its padding of {list(args['pad'])}"
    return ""


def _pooling(b: Builder, f: Any) -> None:
    args = f.info.args
    x, y = f.inputs[0], f.outputs[0]
    kernel = list(args.get("kernel") or x.shape[2:])
    last = bool(args.get("channel_last", False))
    base = x.ndim - len(kernel) - 1
    x_dims, y_dims = _dims(x.shape, base, last), _dims(y.shape, base, last)
    kind = Kind.MAX_POOLING if f.info.type_name == "MaxPooling" else Kind.AVERAGE_POOLING
    b.plan.layer(
        kind,
        [b.flat(x, x_dims) if last else b.turned(x, x_dims)],
        [b.new_flat(y, y_dims) if last else b.new_turned(y, y_dims)],
        {
            0: _three(_spatial(x.shape, base, last), 1),
            3: _three(_spatial(y.shape, base, last), 1),
            6: _three(kernel, 1),
            9: _three(args.get("stride") or kernel, 1),
            12: _three(args.get("pad") or [0] * len(kernel), 0),
            15: [args.get("including_pad", True)],
        },
    )


# -- functions of each number -------------------------------------------------------------------

_UNARY: Dict[str, Tuple[int, Callable[[Any], Sequence[float]]]] = {
    "ReLU": (0, lambda args: ()),
    "LeakyReLU": (1, lambda args: (args["alpha"],)),
    "ReLU6": (2, lambda args: ()),
    "Tanh": (3, lambda args: ()),
    "Sigmoid": (4, lambda args: ()),
    "ELU": (5, lambda args: (args["alpha"],)),
    "SELU": (6, lambda args: (args["scale"], args["alpha"])),
}


def _unary(b: Builder, f: Any) -> None:
    x, y = f.inputs[0], f.outputs[0]
    number, reals = _UNARY[f.info.type_name]
    source, target = b.alike(x, y)
    b.plan.layer(Kind.UNARY, [source], [target], {0: [number]}, reals(f.info.args))


def _refuses_addition(f: Any) -> str:
    shapes = [v.shape for v in f.inputs]
    if () in shapes:
        return "its inputs are single numbers"
    return "" if shapes[0] == shapes[1] else "its inputs differ in their shapes"


def addition(b: Builder, f: Any, fused: Optional[Fused] = None) -> None:
    """The sum of two arrays of one shape, with a ReLU behind it."""
    fused = fused or Fused(f.outputs[0])
    left, right = f.inputs
    dims = b.is_turned(left) or b.is_turned(right)
    if dims is None:
        seen = Dims(left.shape[0], 1, left.size // left.shape[0])
        sources = [b.flat(left, seen), b.flat(right, seen)]
        target = b.new_flat(fused.output, seen)
    else:
        sources = [b.turned(left, dims), b.turned(right, dims)]
        target = b.new_turned(fused.output, dims)
    b.plan.layer(Kind.ADD, sources, [target], {0: [fused.relu]})


def _refuses_pad(f: Any) -> str:
    args, x = f.info.args, f.inputs[0]
    widths = list(args["pad_width"])
    widths = [0] * (2 * x.ndim - len(widths)) + widths
    others = widths[:2] + widths[4:]
    if args["mode"] != "constant" or args["constant_value"] != 0 or any(others) or x.ndim < 3:
        return "it pads something else than channels with zeros"
    return ""


def _pad(b: Builder, f: Any) -> None:
    x, y = f.inputs[0], f.outputs[0]
    widths = list(f.info.args["pad_width"])
    before = ([0] * (2 * x.ndim - len(widths)) + widths)[2]
    b.plan.layer(
        Kind.PAD_CHANNELS,
        [b.turned(x, _dims(x.shape, 1, False))],
        [b.new_turned(y, _dims(y.shape, 1, False))],
        {0: [before]},
    )


def _never(f: Any) -> str:
    return ""


RULES: Dict[str, Rule] = {
    "Convolution": Rule(_refuses_convolution, _convolution, probes=True),
    "DepthwiseConvolution": Rule(_refuses_convolution, _convolution, probes=True),
    "Deconvolution": Rule(_refuses_convolution, _convolution, probes=True),
    "Affine": Rule(_never, _affine, probes=True),
    "BatchNormalization": Rule(_refuses_normalization, normalization),
    "MaxPooling": Rule(_refuses_pooling, _pooling),
    "AveragePooling": Rule(_refuses_pooling, _pooling),
    "GlobalAveragePooling": Rule(_refuses_pooling, _pooling),
    **{name: Rule(_never, _unary) for name in _UNARY},
    "Add2": Rule(_refuses_addition, addition),
    "Pad": Rule(_refuses_pad, _pad),
    MIXTURE: Rule(_never, mixtures.mixture),
    ACTIVATIONS: Rule(mixtures.refuses_activations, mixtures.activations),
    "Concatenate": Rule(mixtures.refuses_concatenation, mixtures.nothing),
}
"""By NNabla's name of the function."""


def why_nnabla(f: Any) -> str:
    """Why a function stays NNabla's, in a few words; empty if it can become layers."""
    rule = RULES.get(f.info.type_name)
    if rule is None:
        return "there is no layer for it"
    context = f.context
    if [backend for backend in context.backend if backend != "cpu:float"]:
        return f"its context is {context.backend}"
    if 0 in (v.size for v in (*f.inputs, *f.outputs)):
        return "it has an empty array"
    return rule.refuses(f)
