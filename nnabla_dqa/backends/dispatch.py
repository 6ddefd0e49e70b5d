"""Select the backend and build the mixture."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Callable, Dict, List, Mapping, Optional, Sequence, Tuple

import nnabla as nn

from nnabla_dqa.backends import portable
from nnabla_dqa.backends.select import device_of, fused_kernels, unavailable, why_portable
from nnabla_dqa.mixing import Mixture
from nnabla_dqa.quantization import Quantizer
from nnabla_dqa.quantization.base import State, common_axis
from nnabla_dqa.quantization.graph_ops import Variable

if TYPE_CHECKING:
    from nnabla_dqa.backends.kernel_args import AttentionSpec

checks_before_saving: List[Callable[[], object]] = []
"""Called once when a graph with fused mixtures is saved; what they raise stops it."""


def mixture(
    w: Variable,
    quantizers: Sequence[Quantizer],
    coefficients: Optional[Variable],
    prune_below: float = 0.0,
    states: Sequence[State] = (),
    hard: bool = False,
) -> Variable:
    """``q = sum_k a_k Q_k(w)`` (DQA eq. 2) with ``dq/da_k = Q_k(w)``.

    ``dq/dw = 1``, unless a quantizer with state has another gradient; see
    :meth:`nnabla_dqa.Quantizer.surrogate`.

    Args:
        w: Weights of any shape.
        quantizers: K of them, with one common channel axis.
        coefficients: ``a`` of shape (1, K); None for K = 1.
        prune_below: The fused kernels may skip quantizers whose coefficient is
            below this; see :attr:`nnabla_dqa.MixingRule.prune_below`.
        states: The quantizers' own arrays, one mapping for each; such
            layers are computed by the portable functions.
        hard: The graph evaluates: quantizers that are soft in training give their levels.

    Returns:
        A variable shaped like ``w``. Where ``a`` is one-hot its forward value
        is that quantizer's ``scale * codes + offset`` bit for bit.

    Raises:
        BackendError: :func:`nnabla_dqa.backend` asks for fused kernels and
            there are none for this context or one of the quantizers.
        ValueError: The quantizers differ in their channel axis, or the
            coefficients are not (1, K).
    """
    common_axis(quantizers)
    count = len(quantizers)
    shape = None if coefficients is None else tuple(coefficients.shape)
    if shape != (None if count == 1 else (1, count)):
        wanted = "None" if count == 1 else f"shape (1, {count})"
        raise ValueError(f"the coefficients of {count} quantizers must be {wanted}; got {shape}")
    if isinstance(w, nn.ProtoVariable) or all(q.is_float for q in quantizers):
        return portable.mixture(w, quantizers, coefficients, states, hard=hard)
    found = _kernels(w.shape, quantizers)
    if found is None:
        return portable.mixture(w, quantizers, coefficients, states, hard=hard)
    from nnabla_dqa.backends.fused import fused_mixture

    return fused_mixture(w, quantizers, coefficients, *found, prune_below)


def mixture_with_attention(
    w: Variable, mixture: Mixture, state: Mapping[str, Variable]
) -> Optional[Tuple[Variable, Variable]]:
    """:func:`mixture` of a layer with the coefficients of its state, in one function.

    Args:
        w: Weights of any shape.
        mixture: What they go through.
        state: The layer's arrays, by their paths in its state scope.

    Returns:
        The mixed weights and the coefficients of shape (1, K); None where the latter have
        to be a graph: by another rule than
        :class:`~nnabla_dqa.Attention`, without kernels, with one quantizer, or while a
        graph definition is recorded.

    Raises:
        BackendError: As of :func:`mixture`.
    """
    if not mixture.is_mixed or isinstance(w, nn.ProtoVariable):
        return None
    from nnabla_dqa.backends.kernel_args import AttentionSpec

    attention = AttentionSpec.of(mixture.mixing)
    found = _kernels(w.shape, mixture.quantizers, attention) if attention else None
    if found is None:
        return None
    from nnabla_dqa.backends.fused import attended_mixture

    return attended_mixture(w, mixture, state, *found)


def activations(
    x: Variable, mixture: Mixture, state: Mapping[str, Variable], index: Optional[int] = None
) -> Tuple[Variable, Optional[Variable]]:
    """What enters a layer through its mixture, and the coefficients.

    Args:
        x: Of any shape.
        mixture: What it goes through.
        state: The layer's arrays, by their paths in its state scope.
        index: For a graph that evaluates, the one quantizer that is used.

    Raises:
        BackendError: :func:`nnabla_dqa.backend` asks for fused kernels and there are none for
            this context or one of the quantizers.
    """
    alone = slice(None) if index is None else slice(index, index + 1)
    quantizers = mixture.quantizers[alone]
    coefficients = None
    if not (isinstance(x, nn.ProtoVariable) or all(q.is_float for q in quantizers)):
        if index is None and not _attends(mixture):
            coefficients = mixture.coefficients(state)
        made = _activation_function(x, mixture, state, coefficients, index)
        if made is not None:
            function, inputs = made
            results = function(*inputs)
            return (results, coefficients) if isinstance(results, nn.Variable) else tuple(results)
    if index is None and coefficients is None:
        coefficients = mixture.coefficients(state)
    states = mixture.quantizer_states(state)[alone]
    return portable.activations(
        x, quantizers, coefficients, states, index is not None
    ), coefficients


def _attends(mixture: Mixture) -> bool:
    """Whether the kernels make the coefficients."""
    from nnabla_dqa.backends.kernel_args import AttentionSpec

    return mixture.is_mixed and AttentionSpec.of(mixture.mixing) is not None


def _activation_function(
    x: nn.Variable,
    mixture: Mixture,
    state: Mapping[str, Variable],
    coefficients: Optional[Variable],
    index: Optional[int],
) -> Optional[Tuple[Any, List[nn.Variable]]]:
    """The fused function of activations and its inputs, None if there are no kernels for it."""
    context = nn.get_current_context()
    if fused_kernels(context)[0] is None:
        return None
    from nnabla_dqa.backends.activation_args import why_no_kernel
    from nnabla_dqa.backends.fused import with_array_class
    from nnabla_dqa.backends.fused_activations import make_function
    from nnabla_dqa.backends.nnabla_hooks import install_hooks

    alone = slice(None) if index is None else slice(index, index + 1)
    reason = why_no_kernel(x.shape, mixture.quantizers[alone], device_of(context))
    if reason:
        unavailable(reason)
        return None
    install_hooks()
    try:
        made = make_function(x, mixture, state, coefficients, index, with_array_class(context))
    except (OSError, RuntimeError) as error:
        _refused(context, error)
        return None
    _refusals.pop(_device(context), None)
    return made


def backend_of(
    quantizers: Sequence[Quantizer],
    shape: Tuple[int, ...],
    context: Optional[nn.Context] = None,
    tensor: str = "weight",
) -> str:
    """What :func:`mixture` would choose here for such a layer; nothing is built.

    Args:
        quantizers: K of them.
        shape: Of the weights.
        context: Default: the current one. The enclosing
            :func:`nnabla_dqa.backend` block counts too.
        tensor: ``"weight"`` or ``"activation"``.

    Returns:
        ``"fused"``; ``"portable: "`` and why, for example ``"portable: AbsMean
        has no kernel"``; or ``"none: the weights stay float"``.
    """
    if all(q.is_float for q in quantizers):
        return "none: the weights stay float"
    from nnabla_dqa.backends import activation_args, kernel_args

    context = context or nn.get_current_context()
    reason = why_portable(context)
    if tensor == "activation":
        device = device_of(context)
        reason = reason or activation_args.why_no_kernel(shape, quantizers, device)
    else:
        reason = reason or kernel_args.why_no_kernel(shape, quantizers)
    reason = reason or _refusals.get(_device(context), "")
    return f"portable: {reason}" if reason else "fused"


_refusals: Dict[Tuple[str, str], str] = {}
"""Why a device did not take the kernels when a layer was built."""


def _device(context: nn.Context) -> Tuple[str, str]:
    return device_of(context), context.device_id


def _refused(context: nn.Context, error: Exception) -> None:
    """Note that kernels are there, and the device does not take them."""
    reason = _refusals[_device(context)] = f"on {device_of(context)}: {error}"
    unavailable(reason, surprising=True)


def _kernels(
    shape: Tuple[int, ...],
    quantizers: Sequence[Quantizer],
    attention: Optional[AttentionSpec] = None,
) -> Optional[Tuple[Any, nn.Context]]:
    """The kernels of a layer and the context for its arrays, None if there are none."""
    context = nn.get_current_context()
    kernels, _ = fused_kernels(context)
    if kernels is None:
        return None
    # Not before it is needed: importing the package takes no longer for it.
    from nnabla_dqa.backends.fused import with_array_class
    from nnabla_dqa.backends.kernel_args import LayerSpec, why_no_kernel
    from nnabla_dqa.backends.nnabla_hooks import install_hooks

    spec = LayerSpec.of(shape, quantizers, attention)
    if spec is None:
        unavailable(why_no_kernel(shape, quantizers))
        return None
    install_hooks()
    try:
        context = with_array_class(context)
        made = kernels(spec, context)
    except (OSError, RuntimeError) as error:
        _refused(context, error)
        return None
    _refusals.pop(_device(context), None)
    return made, context
