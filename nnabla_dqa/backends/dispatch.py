"""The mixture by the backend that holds."""

from __future__ import annotations

from typing import Optional, Sequence

import nnabla as nn

from nnabla_dqa.backends import portable
from nnabla_dqa.backends.select import device_of, fused_kernels, without
from nnabla_dqa.quantization import FullPrecision, Quantizer
from nnabla_dqa.quantization.graph_ops import Variable


def mixture(
    w: Variable,
    quantizers: Sequence[Quantizer],
    shares: Optional[Variable],
    negligible: float = 0.0,
) -> Variable:
    """``q = sum_k a_k Q_k(w)`` (DQA eq. 2) with ``dq/dw = 1`` and ``dq/da_k = Q_k(w)``.

    Args:
        w: Weights of any shape.
        quantizers: K of them, with one common channel axis.
        shares: ``a`` of shape (1, K); None for K = 1.
        negligible: The fused kernels may leave out quantizers whose share is
            below this; see :attr:`nnabla_dqa.MixingRule.negligible`.

    Returns:
        A variable shaped like ``w``. Where ``a`` is one-hot its forward value
        is that quantizer's ``scale * codes + offset`` bit for bit.

    Raises:
        BackendError: :func:`nnabla_dqa.backend` asks for fused kernels and
            there are none for this context or one of the quantizers.
        ValueError: The quantizers differ in their channel axis, or the shares
            are not (1, K).
    """
    portable.common_axis(quantizers)
    count = len(quantizers)
    shape = None if shares is None else tuple(shares.shape)
    if shape != (None if count == 1 else (1, count)):
        wanted = "None" if count == 1 else f"shape (1, {count})"
        raise ValueError(f"the shares of {count} quantizers must be {wanted}; got {shape}")
    if isinstance(w, nn.ProtoVariable) or all(isinstance(q, FullPrecision) for q in quantizers):
        return portable.mixture(w, quantizers, shares)
    fused = _fused(w, quantizers, shares, negligible)
    return portable.mixture(w, quantizers, shares) if fused is None else fused


def _fused(
    w: nn.Variable,
    quantizers: Sequence[Quantizer],
    shares: Optional[nn.Variable],
    negligible: float,
) -> Optional[nn.Variable]:
    context = nn.get_current_context()
    kernels, _ = fused_kernels(context)
    if kernels is None:
        return None
    # Not before it is needed: importing the package takes no longer for it.
    from nnabla_dqa.backends.fused import fused_mixture, with_array_class
    from nnabla_dqa.backends.kernel_args import Problem
    from nnabla_dqa.backends.nnabla_hooks import install_hooks

    problem = Problem.of(w.shape, quantizers)
    if problem is None:
        listed = ", ".join(str(q) for q in quantizers)
        without(f"not all of {listed} have kernels for weights of shape {w.shape}")
        return None
    install_hooks()
    context = with_array_class(context)
    try:
        made = kernels(problem, context)
    except (OSError, RuntimeError) as error:
        # They are there, and the device does not take them.
        without(f"on {device_of(context)}: {error}", warn=True)
        return None
    return fused_mixture(w, quantizers, shares, made, context, negligible)
