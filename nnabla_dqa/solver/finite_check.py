"""A check that stops a training before NaN or infinity reaches the weights."""

from __future__ import annotations

from typing import Any, List, Mapping, Tuple

import nnabla as nn
import nnabla.functions as F
import numpy as np

from nnabla_dqa._util.devices import in_float32
from nnabla_dqa.layers.tensors import QuantizedTensor


class NonFiniteError(FloatingPointError):
    """A weight, an attention or a gradient of a layer is NaN or infinite."""


def check_finite(layers: List[QuantizedTensor], gradients: bool = True) -> None:
    """Raise unless all weights and learned states of ``layers`` are finite.

    Args:
        layers: As of :func:`nnabla_dqa.layers.tensors.find_quantized`.
        gradients: Check the gradients of trained arrays too.

    Raises:
        NonFiniteError: Names the first layer and array concerned.
    """
    Guard(gradients)(layers)


class Guard:
    """:func:`check_finite` for the same layers after every update.

    All arrays are summed up to one number where they are, so that a GPU hands
    over one number a check. The graph that does it is kept until another array
    is to be checked.

    Args:
        gradients: Check the gradients of trained arrays too.
    """

    def __init__(self, gradients: bool = True) -> None:
        self._gradients = gradients
        self._known: Tuple[Any, ...] = ()
        self._total: Any = None

    def __call__(self, layers: List[QuantizedTensor]) -> None:
        """Raise NonFiniteError, naming layer and array, unless all numbers are finite."""
        arrays = [array for layer in layers for _, array in _arrays(layer, self._gradients)]
        if not arrays:
            return
        context = nn.get_current_context()
        known = (*context.backend, context.array_class, context.device_id, *arrays)
        if known != self._known:
            self._total, self._known = _sum_of(arrays), known
        self._total.forward()
        # Infinity and NaN last through a sum. A sum of finite numbers may overflow too.
        if not np.isfinite(self._total.data.get_data("r")):
            _look_closely(layers, self._gradients)


def _sum_of(arrays: List[Any]) -> Any:
    leaves = [nn.Variable(array.shape) for array in arrays]
    for leaf, array in zip(leaves, arrays):
        leaf.data = array
    with in_float32(), nn.auto_forward(False):
        return F.add_n(*[F.sum(leaf) for leaf in leaves])


def _look_closely(layers: List[QuantizedTensor], gradients: bool) -> None:
    for layer in layers:
        for name, array in _arrays(layer, gradients):
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


def _arrays(layer: QuantizedTensor, gradients: bool) -> List[Tuple[str, Any]]:
    arrays = []
    for name, variable in {"W": layer.weight, **layer.learned()}.items():
        path = name if name == "W" else f"dqa/{name}"
        arrays.append((path, variable.data))
        if gradients and variable.need_grad:
            arrays.append((f"the gradient of {path}", variable.grad))
    return arrays
