"""A check that stops a training before NaN or infinity reaches the weights."""

from __future__ import annotations

from typing import Any, List, Mapping, Tuple

import nnabla.functions as F
import numpy as np

from nnabla_dqa.layers import Layer


class NonFiniteError(FloatingPointError):
    """A weight, an attention or a gradient of a layer is NaN or infinite."""


def check_finite(layers: List[Layer], gradients: bool = True) -> None:
    """Raise unless all weights and learned states of ``layers`` are finite.

    Args:
        layers: As of :func:`nnabla_dqa.layers.find_layers`.
        gradients: Check the gradients of trained arrays too.

    Raises:
        NonFiniteError: Names the first layer and array concerned.
    """
    named = [entry for layer in layers for entry in _arrays(layer, gradients)]
    # Finite numbers times zero sum to zero, all others to NaN. The sums are made where
    # the arrays are, so that a GPU hands over one number each.
    sums = [F.sum(F.mul_scalar(array, 0.0)) for _, array in named]
    for (name, _), total in zip(named, sums):
        if not np.isfinite(total.data):
            raise NonFiniteError(
                f"{name} is NaN or infinite; look for NaN in the data, the loss and the other "
                f"parameters; a smaller learning rate or gradient clipping may help"
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


def _arrays(layer: Layer, gradients: bool) -> List[Tuple[str, Any]]:
    arrays = []
    for name, variable in {"W": layer.weight, **layer.learned}.items():
        path = name if name == "W" else f"dqa/{name}"
        arrays.append((f"layer {layer.name}: {path}", variable.data))
        if gradients and variable.need_grad:
            arrays.append((f"layer {layer.name}: the gradient of {path}", variable.grad))
    return arrays
