"""What the layers built inside a ``with`` block use."""

from __future__ import annotations

import contextlib
import contextvars
from typing import Iterator, Optional

from nnabla_dqa.layers.tensors import Mixture
from nnabla_dqa.mixing import Attention, MixingRule, Single
from nnabla_dqa.quantization import Quantizer

_MIXTURE: contextvars.ContextVar[Optional[Mixture]] = contextvars.ContextVar(
    "mixture", default=None
)
_HARD: contextvars.ContextVar[Optional[str]] = contextvars.ContextVar("hard", default=None)


def make_mixture(*quantizers: Quantizer, mixing: Optional[MixingRule] = None) -> Mixture:
    """A mixture with the default rule: attention, or Single for one quantizer."""
    if mixing is None:
        mixing = Single() if len(quantizers) == 1 else Attention()
    return Mixture(tuple(quantizers), mixing)


@contextlib.contextmanager
def quantizers(*quantizers: Quantizer, mixing: Optional[MixingRule] = None) -> Iterator[Mixture]:
    """Layers built in this block mix these quantizers, unless they are given their own.

    Args:
        *quantizers: From the lowest to the highest bit width. The first is the
            target, the one that remains.
        mixing: Default :class:`~nnabla_dqa.Attention` for two and more,
            :class:`~nnabla_dqa.Single` for one.

    Raises:
        ValueError: None given, not sorted, equal bit widths, different channel
            axes, or a rule that refuses them.

    Example:
        with dqa.quantizers(dqa.MinMax(2), dqa.MinMax(4), dqa.MinMax(8)):
            h = PF.dqa_convolution(x, 64, (3, 3), name="conv1")
    """
    token = _MIXTURE.set(make_mixture(*quantizers, mixing=mixing))
    try:
        yield _MIXTURE.get()  # type: ignore[misc]
    finally:
        _MIXTURE.reset(token)


@contextlib.contextmanager
def hard(choose: str = "lowest") -> Iterator[None]:
    """Layers built in this block use one quantizer alone: the network as it will be deployed.

    It changes no parameter.

    Args:
        choose: ``"lowest"``: the lowest bit width; ``"argmax"``: in each layer
            the one with the largest share at the time the layer is built.

    Raises:
        ValueError: ``choose`` is something else.
    """
    if choose not in ("lowest", "argmax"):
        raise ValueError(f"choose={choose!r} is neither 'lowest' nor 'argmax'")
    token = _HARD.set(choose)
    try:
        yield
    finally:
        _HARD.reset(token)


def current_mixture() -> Optional[Mixture]:
    """The mixture of the innermost :func:`quantizers` block, or None."""
    return _MIXTURE.get()


def current_choice() -> Optional[str]:
    """The ``choose`` of the innermost :func:`hard` block, or None."""
    return _HARD.get()
