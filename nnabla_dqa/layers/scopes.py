"""What the layers built inside a ``with`` block use."""

from __future__ import annotations

import contextlib
import contextvars
from typing import Any, Iterator, Optional, Sequence, Tuple

from nnabla_dqa._util.renamed import renamed, warn_renamed
from nnabla_dqa.mixing import Attention, MixingRule, Mixture, Single
from nnabla_dqa.quantization import Quantizer

_MIXTURE: contextvars.ContextVar[Optional[Mixture]] = contextvars.ContextVar(
    "mixture", default=None
)
_ACTIVATIONS: contextvars.ContextVar[Optional[Mixture]] = contextvars.ContextVar(
    "activations", default=None
)
_SELECTION: contextvars.ContextVar[Optional[str]] = contextvars.ContextVar("hard", default=None)

_CHOOSING: contextvars.ContextVar[bool] = contextvars.ContextVar("choosing", default=False)


def listed(given: Any, name: str, example: str) -> Tuple[Quantizer, ...]:
    """The quantizers that an argument gives.

    Args:
        given: A sequence of quantizers.
        name: Of the argument, for messages.
        example: A list that would be right.

    Raises:
        ValueError: It is a single quantizer, or a notation.
    """
    if isinstance(given, (str, Quantizer)):
        what = "a notation, which recipes take" if isinstance(given, str) else "one quantizer"
        raise ValueError(f"{name}={given!r} is {what}; give a list of them, such as {example}")
    return tuple(given)


def make_mixture(
    *quantizers: Quantizer, mixing: Optional[MixingRule] = None, target: int = 0
) -> Mixture:
    """A mixture with the default rule: attention, or Single for one quantizer.

    Examples:
        >>> import nnabla_dqa as dqa
        >>> dqa.make_mixture(dqa.MinMax(2), dqa.MinMax(4), dqa.MinMax(8)).mixing.label
        'DQA'
        >>> dqa.make_mixture(dqa.SAWB(2)).mixing.label
        'Plain'
    """
    if mixing is None:
        mixing = Single() if len(quantizers) == 1 else Attention()
    return Mixture(tuple(quantizers), mixing, target)


@contextlib.contextmanager
def quantizers(
    *quantizers: Quantizer,
    mixing: Optional[MixingRule] = None,
    target: int = 0,
    activations: Sequence[Quantizer] = (),
) -> Iterator[Mixture]:
    """Layers built in this block mix these quantizers, unless they are given their own.

    Args:
        *quantizers: From the lowest to the highest bit width; equal ones are
            allowed, as in ``MinMax(2), SAWB(2)``.
        mixing: Default :class:`~nnabla_dqa.Attention` for two and more,
            :class:`~nnabla_dqa.Single` for one.
        target: Index of the quantizer that remains; default: the first.
        activations: Quantizers of what enters the layers, mixed by the same rule, with
            an attention of their own; the first remains. The input of the network
            (a variable that nothing in the graph has computed) stays as it is.

    Raises:
        ValueError: None given, not sorted, one given twice, different channel
            axes, no such target, or a rule that refuses them.

    Examples:
        >>> import nnabla as nn
        >>> import nnabla_dqa as dqa
        >>> import nnabla_dqa.parametric_functions as PF
        >>> x = nn.Variable((8, 3, 32, 32))
        >>> with dqa.quantizers(dqa.MinMax(2), dqa.MinMax(4), dqa.MinMax(8)):
        ...     h = PF.dqa_convolution(x, 16, (3, 3), name="conv1")
        ...     y = PF.dqa_affine(h, 10, name="fc", quantizers=[dqa.FullPrecision()])
        >>> [(layer.name, layer.mixture.target_quantizer.bits) for layer in dqa.find_quantized()]
        [('conv1/conv', 2), ('fc/affine', 32)]
    """
    made = make_mixture(*quantizers, mixing=mixing, target=target)
    entering = listed(activations, "activations", "[PACT(2)]")
    inputs = make_mixture(*entering, mixing=mixing) if entering else None
    token, other = _MIXTURE.set(made), _ACTIVATIONS.set(inputs)
    try:
        yield made
    finally:
        _ACTIVATIONS.reset(other)
        _MIXTURE.reset(token)


@contextlib.contextmanager
def choosing(choose: bool = True) -> Iterator[None]:
    """Weights that layers built in this block mix can be given bits by a budget.

    They keep the array ``chosen`` from the start, so that graphs built under :func:`hard` follow
    it; :func:`nnabla_dqa.regularizer` with a budget makes it for layers that exist.

    Args:
        choose: False for a block that changes nothing.
    """
    token = _CHOOSING.set(choose or _CHOOSING.get())
    try:
        yield
    finally:
        _CHOOSING.reset(token)


def is_choosing() -> bool:
    """Whether this is within :func:`choosing`."""
    return _CHOOSING.get()


SELECTIONS = ("target", "argmax")


@renamed(choose="select")
@contextlib.contextmanager
def hard(select: str = "target") -> Iterator[None]:
    """Layers built in this block use one quantizer alone: the network as it will be deployed.

    It changes no parameter.

    Args:
        select: ``"target"``: the target quantizer, or the one that a budget chooses, also when
            it chooses anew later; ``"argmax"``: in each layer
            the one with the largest attention at the time the layer is built.

    Raises:
        ValueError: ``select`` is something else.

    Examples:
        >>> import nnabla as nn
        >>> import nnabla_dqa as dqa
        >>> import nnabla_dqa.parametric_functions as PF
        >>> import numpy as np
        >>> def model(x):
        ...     with dqa.quantizers(dqa.MinMax(2), dqa.MinMax(4), dqa.MinMax(8)):
        ...         return PF.dqa_affine(x, 10, name="fc")
        >>> x = nn.Variable.from_numpy_array(np.eye(64))
        >>> with dqa.hard():
        ...     y = model(x)  # as it will be deployed
        >>> y.forward()
        >>> len(np.unique(y.d))  # one row of the weights for each image: 2 bits
        4
    """
    token = _SELECTION.set(checked_selection(select, "hard"))
    try:
        yield
    finally:
        _SELECTION.reset(token)


def checked_selection(select: str, where: str) -> str:
    """``select``, with its old name ``"lowest"`` for ``"target"`` still understood.

    Raises:
        ValueError: It is neither ``"target"`` nor ``"argmax"``.
    """
    if select == "lowest":
        warn_renamed(f'{where}: select="lowest"', 'select="target"')
        return "target"
    if select not in SELECTIONS:
        raise ValueError(f"{where}: select={select!r} is neither 'target' nor 'argmax'")
    return select


def current_mixture() -> Optional[Mixture]:
    """The mixture of the innermost :func:`quantizers` block, or None."""
    return _MIXTURE.get()


def current_activations() -> Optional[Mixture]:
    """The mixture of the innermost :func:`quantizers` block for what enters layers, or None."""
    return _ACTIVATIONS.get()


def current_selection() -> Optional[str]:
    """The ``select`` of the innermost :func:`hard` block, or None."""
    return _SELECTION.get()
