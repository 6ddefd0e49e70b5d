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

import inspect
from typing import Any, Callable, Dict, List

import nnabla.functions as F
import nnabla.parametric_functions as _PF
from nnabla.initializer import ConstantInitializer, UniformInitializer, calc_uniform_lim_glorot
from nnabla.parameter import get_parameter_or_create
from nnabla.parametric_functions import *  # noqa: F403
from nnabla.utils.signature_utils import SignatureEx

from nnabla_dqa.layers.build import mixer, quantize_input
from nnabla_dqa.quantization.graph_ops import Variable

_ADDED = {
    "quantizers": "Quantizers",
    "mixing": "Optional[MixingRule]",
    "activations": "Quantizers",
}
"""The parameters beyond NNabla's, with their types; None by default."""

_TYPES = {
    name: kind
    for kind, names in {
        "Variable": "inp",
        "bool": "channel_last fix_parameters with_bias",
        "int": "outmaps n_inputs n_features base_axis group multiplier divisor",
        "Union[int, Tuple[int, ...]]": "n_outmaps",
        "Tuple[int, ...]": "kernel",
        "Optional[Tuple[int, ...]]": "pad stride dilation output_padding",
        "Initializer": "w_init b_init initializer",
        "Optional[np.random.RandomState]": "rng",
        "Apply": "apply_w apply_b",
    }.items()
    for name in names.split()
}
"""The types of NNabla's parameters, which it does not annotate. Text, as NNabla builds
the layer from the text of its signature."""

_STATE = [
    ("W", "Float weights, as in NNabla's own layer", "as in NNabla's own layer", True),
    ("b", "Bias, as in NNabla's own layer", "as in NNabla's own layer", True),
    ("dqa/alpha", "Attention (rule Attention, two or more quantizers)", "(K,)", True),
    ("dqa/temperature", "Temperature (rule Attention)", "(1,)", False),
    ("dqa/omega", "Growth factor (rule BinaryRelax)", "(1,)", False),
    ("dqa/hard", "Zeros, or one-hot: this quantizer alone", "(K,)", False),
    ("dqa/activation/...", "The same of what enters the layer, if that is quantized", "", True),
    ("dqa/config/...", "Function, quantizers, rule and target, as JSON", "(bytes,)", False),
]
_DOCUMENTATION = """{what}, ``q = sum_k a_k Q_k(W)`` (arXiv 2103.13322, eq. 2).

    ``W`` is {weights}.

    All arguments of :func:`nnabla.parametric_functions.{base}`, which it
    replaces, and:

    Args:
        quantizers (sequence of Quantizer): From the lowest to the highest bit
            width; default: those of the enclosing ``with dqa.quantizers(...)``.
        mixing (MixingRule): How they are mixed; default: that of the enclosing
            block, else ``Attention()``, or ``Single()`` for one quantizer.
        activations (sequence of Quantizer): Likewise for ``inp``, which is then quantized
            before the layer, also if it is the network's input; ``()`` for not. Default: those
            of the enclosing block, which leave the network's input alone.

    Returns:
        ~nnabla.Variable: As of :func:`nnabla.parametric_functions.{base}`.

    Raises:
        ValueError: No quantizers, a set that cannot be mixed, a channel axis
            that the weights do not have, or a layer of this name with another
            set. The message names the layer.
    """


def _layer(base: str, what: str, weights: str) -> Callable[..., Variable]:
    """NNabla's layer ``base`` with its own signature and :data:`_ADDED`, over mixed weights.

    ``what`` the layer is and the shape of its ``weights`` are for the documentation.
    """
    native = getattr(_PF, base)
    # Without its scope, which the decorator below enters already.
    build = native.__parametric_function_api_base__
    function = base.title().replace("_", "")
    signature = _signature(build)

    def layer(*args: Any, **kwargs: Any) -> Variable:
        bound = signature.bind(*args, **kwargs)
        bound.apply_defaults()
        given = bound.arguments
        added = {name: given.pop(name) for name in _ADDED}
        fixed, before = given["fix_parameters"], given.get("apply_w")
        activations = added.pop("activations")
        last = given.get("channel_last", False)
        given["inp"] = quantize_input(
            function, given["inp"], activations, added["mixing"], fixed, last
        )
        apply = mixer(function, given["inp"], **added, fix_parameters=fixed, apply_w=before)
        if "apply_w" not in given:
            return _depthwise(base, apply, given)
        return build(**{**given, "apply_w": apply})

    layer.__name__ = f"dqa_{base}"
    layer.__doc__ = _DOCUMENTATION.format(base=base, what=what, weights=weights)
    layer.__signature__ = signature  # type: ignore[attr-defined]
    decorate = _PF.parametric_function_api(native.__scope_name__, _STATE)
    made: Callable[..., Variable] = decorate(layer)
    made.__module__ = __name__
    DQA_LAYERS.append(made)
    return made


def _signature(build: Callable[..., Any]) -> inspect.Signature:
    given = inspect.signature(build).parameters.values()
    parameters = [p.replace(annotation=_TYPES[p.name]) for p in given]
    for name, kind in _ADDED.items():
        new = inspect.Parameter(name, parameters[0].kind, default=None, annotation=kind)
        parameters.append(new)
    # NNabla's own subclass: its decorator takes no other.
    made: inspect.Signature = SignatureEx(parameters, return_annotation="Variable")
    return made


def _depthwise(base: str, apply: Callable[[Variable], Variable], given: Dict[str, Any]) -> Variable:
    """W and b as NNabla's depthwise layers register them; those take no ``apply_w``."""
    own = ("inp", "kernel", "w_init", "b_init", "fix_parameters", "rng", "with_bias")
    inp, kernel, w_init, b_init, fixed, rng, with_bias = (given.pop(name) for name in own)
    channels = inp.shape[given["base_axis"]]
    maps = channels * given.get("multiplier", 1)
    if w_init is None:
        w_init = UniformInitializer(calc_uniform_lim_glorot(maps, channels, tuple(kernel)), rng=rng)
    w = get_parameter_or_create("W", (maps, *kernel), w_init, True, not fixed)
    b = None
    if with_bias:
        b_init = ConstantInitializer() if b_init is None else b_init
        biases = maps // given.get("divisor", 1)
        b = get_parameter_or_create("b", (biases,), b_init, True, not fixed)
    return getattr(F, base)(inp, apply(w), b, **given)


DQA_LAYERS: List[Callable[..., Variable]] = []

dqa_affine = _layer(
    "affine", "Affine ``y = x q(W) + b``", "(inputs, outputs): its output channels are axis 1"
)
dqa_convolution = _layer(
    "convolution",
    "N-D convolution with the kernel ``q(W)``",
    "(outputs, inputs / group, *kernel), with ``channel_last``\n"
    "    (outputs, *kernel, inputs / group): its output channels are axis 0",
)
dqa_deconvolution = _layer(
    "deconvolution",
    "N-D transposed convolution with the kernel ``q(W)``",
    "(inputs, outputs / group, *kernel): its output channels are axis 1",
)
dqa_depthwise_convolution = _layer(
    "depthwise_convolution",
    "N-D depthwise convolution with the kernel ``q(W)``",
    "(channels * multiplier, *kernel): its output channels are axis 0",
)
dqa_depthwise_deconvolution = _layer(
    "depthwise_deconvolution",
    "N-D depthwise transposed convolution with the kernel ``q(W)``",
    "(channels, *kernel): its channels are axis 0",
)
dqa_embed = _layer(
    "embed", "Embedding with the table ``q(W)``", "(inputs, features): its rows are axis 0"
)


def install() -> None:
    """Make the layers available from ``nnabla.parametric_functions``; done on import."""
    for layer in DQA_LAYERS:
        setattr(_PF, layer.__name__, layer)
