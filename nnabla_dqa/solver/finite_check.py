"""A check that stops a training before NaN or infinity reaches the weights."""

from __future__ import annotations

import contextlib
from typing import Any, List, Mapping, Optional, Sequence, Tuple

import nnabla as nn
import nnabla.functions as F
import numpy as np

from nnabla_dqa._util.devices import in_float32
from nnabla_dqa.backends.fused import with_array_class
from nnabla_dqa.backends.seen import take_finite
from nnabla_dqa.backends.select import current_backend, finite_checker
from nnabla_dqa.layers.tensors import QuantizedTensor

_GRADIENT = "the gradient of"
_SINGLE = (np.dtype(np.float32), np.dtype(np.float16))
"""Looked at in float32; half precision becomes so in the solver anyway."""


class NonFiniteError(FloatingPointError):
    """A weight, an attention or a gradient of a layer is NaN or infinite."""


def check_finite(layers: List[QuantizedTensor], gradients: bool = True) -> None:
    """Raise unless all weights and learned states of ``layers`` are finite.

    Args:
        layers: As of :func:`nnabla_dqa.layers.tensors.find_quantized`.
        gradients: Check the gradients of trained arrays too.

    Raises:
        NonFiniteError: Names the first layer and array concerned.

    Examples:
        >>> import nnabla as nn
        >>> import nnabla_dqa as dqa
        >>> import nnabla_dqa.parametric_functions as PF
        >>> y = PF.dqa_affine(nn.Variable((8, 64)), 10, name="fc", quantizers=[dqa.SAWB(2)])
        >>> nn.get_parameters()["fc/affine/W"].d = float("nan")
        >>> dqa.check_finite(dqa.find_quantized(), gradients=False)
        Traceback (most recent call last):
            ...
        nnabla_dqa.solver.finite_check.NonFiniteError: ...
    """
    Guard(gradients)(layers)


class FiniteFlag:
    """Whether all numbers of some arrays are finite, found where they are.

    A GPU hands over one number, and only when it is asked for. Without kernels for the
    context NNabla adds the arrays up; that graph is kept until other arrays come.
    """

    def __init__(self) -> None:
        self._known: Tuple[Any, ...] = ()
        self._total: Any = None
        self._checker: Any = None
        self._context: Tuple[Any, ...] = ()
        self._result: Optional[bool] = None

    def begin(self, arrays: Sequence[nn.NdArray]) -> None:
        """Have them looked at."""
        self._result = None
        with in_float32():
            context = nn.get_current_context()
        self._make(context)
        if self._checker is not None:
            looked_at, left = [], []
            for array in arrays:
                try:
                    mine = array.dtype in _SINGLE
                except RuntimeError:
                    # It was filled, and becomes float32 where it is used.
                    mine = True
                if not mine:
                    left.append(array)
                elif not array.zeroing:
                    looked_at.append(array)
            self._checker.begin(looked_at)
            arrays = left
        known = (*self._context, *arrays)
        if known != self._known:
            self._total, self._known = _sum_of(arrays) if arrays else None, known
        if self._total is not None:
            self._total.forward()

    def read(self) -> bool:
        """Whether they are. A sum of finite numbers may overflow, so False is a suspicion."""
        if self._result is None:
            total = self._total
            # Infinity and NaN last through a sum.
            self._result = total is None or bool(np.isfinite(total.data.get_data("r")))
            if self._checker is not None and self._result:
                self._result = bool(self._checker.read())
        return self._result

    def _make(self, context: nn.Context) -> None:
        key = (*context.backend, context.array_class, context.device_id, current_backend())
        if key == self._context:
            return
        self._context, self._checker = key, None
        kind = finite_checker(context)
        if kind is not None:
            with contextlib.suppress(OSError, RuntimeError):
                self._checker = kind(with_array_class(context))


class Guard:
    """:func:`check_finite` for the same layers after every update.

    All arrays are looked at in one go (:class:`FiniteFlag`); which one it is is found
    only where there is something to find.

    Args:
        gradients: Check the gradients of trained arrays too.
    """

    def __init__(self, gradients: bool = True) -> None:
        self._gradients = gradients
        self._flag = FiniteFlag()
        self._layers: Optional[List[QuantizedTensor]] = None
        self._variables: List[Any] = []
        self._seen: Tuple[Sequence[Any], ...] = ()
        self._unseen: List[Any] = []

    def __call__(self, layers: List[QuantizedTensor]) -> None:
        """Raise NonFiniteError, naming layer and array, unless all numbers are finite."""
        self.begin(layers)
        self.finish(layers)

    def begin(self, layers: List[QuantizedTensor], others: Sequence[nn.NdArray] = ()) -> None:
        """Have the arrays of ``layers``, and ``others``, looked at; :meth:`passed` tells.

        Not again what layers on oneDNN have found finite in the last forward pass: weights and
        alpha that became NaN since are found in the next one.
        """
        seen = take_finite()
        if layers is not self._layers or list(map(id, seen)) != list(map(id, self._seen)):
            # After every update it is the same, and the question costs more than the numbers do.
            self._variables = [v for layer in layers for _, v in _variables(layer)]
            found = {v.data for variables in seen for v in variables}
            self._unseen = [v for v in self._variables if v.data not in found]
            self._layers, self._seen = layers, seen
        arrays = [v.data for v in self._unseen]
        if self._gradients:
            arrays += [v.grad for v in self._variables if v.need_grad]
        self._flag.begin([*dict.fromkeys([*arrays, *others])] if others else arrays)

    def passed(self) -> bool:
        """Whether what :meth:`begin` looked at is finite; False is a suspicion."""
        return self._flag.read()

    def finish(self, layers: List[QuantizedTensor], gradients: bool = True) -> None:
        """Raise NonFiniteError if :meth:`begin` found something in ``layers``.

        Without ``gradients``: in their weights and learned states.
        """
        if not self.passed():
            _look_closely(layers, self._gradients and gradients)


def _sum_of(arrays: Sequence[Any]) -> Any:
    leaves = [nn.Variable(array.shape) for array in arrays]
    for leaf, array in zip(leaves, arrays):
        leaf.data = array
    with in_float32(), nn.auto_forward(False):
        return F.add_n(*[F.sum(leaf) for leaf in leaves])


def _look_closely(layers: List[QuantizedTensor], gradients: bool) -> None:
    named = [(layer, *named) for layer in layers for named in _arrays(layer, gradients)]
    # One weight that is NaN makes the gradients of all layers so. It is the one to name.
    named.sort(key=lambda entry: entry[1].startswith(_GRADIENT))
    for layer, name, array in named:
        # Finite numbers times zero sum to zero, all others to NaN.
        with in_float32():
            total = F.sum(F.mul_scalar(array, 0.0))
        if not np.isfinite(total.data):
            raise NonFiniteError(
                f"layer {layer.name}: {name} is NaN or infinite; look for NaN in the data, the "
                f"loss and the other parameters; a smaller learning rate or gradient clipping "
                f"may help"
            )


def check_arrays(arrays: Mapping[str, np.ndarray]) -> None:
    """Raise NonFiniteError unless all parameters are finite; names the first that is not.

    The loss does not tell: on the CPU the ReLU of NaN is 0.

    Args:
        arrays: By name.
    """
    for name, array in arrays.items():
        if not np.isfinite(array).all():
            raise NonFiniteError(
                f"parameter {name} is NaN or infinite; look for NaN in the data; a smaller "
                f"learning rate may help"
            )


def _variables(layer: QuantizedTensor) -> List[Tuple[str, Any]]:
    if layer.is_weight:
        return [("W", layer.weight), *((f"dqa/{path}", v) for path, v in layer.learned().items())]
    state = {**layer.learned(), **layer.running}
    return [(f"dqa/activation/{path}", v) for path, v in state.items()]


def _arrays(layer: QuantizedTensor, gradients: bool) -> List[Tuple[str, Any]]:
    arrays = []
    for name, variable in _variables(layer):
        arrays.append((name, variable.data))
        if gradients and variable.need_grad:
            arrays.append((f"{_GRADIENT} {name}", variable.grad))
    return arrays
