"""Loading the weights of a checkpoint without the state of its quantizers."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any, List

import nnabla as nn

from nnabla_dqa._util.files import PathLike
from nnabla_dqa.layers.tensors import state_paths


def load_weights(path: PathLike) -> List[str]:
    """``nn.load_parameters`` without what belongs to quantizers, rules and schedules.

    For a net whose layers have other quantizers than the checkpoint's: weights,
    biases and batch normalization are taken over. It may be called before or
    after the model is built; state that layers have already stays as it is, so
    call it before a training has moved it.

    Args:
        path: What ``nn.save_parameters`` wrote, or an NNP.

    Returns:
        The names that were not taken over.

    Raises:
        ValueError: A parameter has another shape in the model that is built
            already, or none of its names is in that model; names it, and
            nothing has been loaded then.
        OSError: The file cannot be read.

    Examples:
        >>> import nnabla as nn
        >>> import nnabla_dqa as dqa
        >>> import nnabla_dqa.parametric_functions as PF
        >>> x = nn.Variable((8, 64))
        >>> y = PF.dqa_affine(x, 10, name="fc", quantizers=[dqa.MinMax(b) for b in (2, 4, 8)])
        >>> nn.save_parameters("minmax.h5")
        >>> nn.clear_parameters()
        >>> y = PF.dqa_affine(x, 10, name="fc", quantizers=[dqa.SAWB(2)])
        >>> left_out = dqa.load_weights("minmax.h5")
        >>> [name for name in left_out if "config" not in name]
        ['fc/affine/dqa/alpha', 'fc/affine/dqa/temperature', 'fc/affine/dqa/hard']
    """
    with open(path, "rb"):
        pass
    loaded: Any = OrderedDict()
    with nn.parameter_scope("", loaded):
        nn.load_parameters(str(path))
        parameters = nn.get_parameters(grad_only=False)
    present = nn.get_parameters(grad_only=False)
    state = state_paths(parameters)
    weights = {name: v for name, v in parameters.items() if name not in set(state)}
    if present and not set(weights) & set(present):
        raise ValueError(
            f"{path}: none of its parameters ({next(iter(weights), 'it has none')}, ...) is in the "
            f"model, whose first is {next(iter(present))}; call it in the scope of the model"
        )
    for name, v in weights.items():
        if name in present and present[name].shape != v.shape:
            raise ValueError(
                f"{path}: parameter {name} has shape {v.shape}, in the model {present[name].shape}"
            )
    for name, v in weights.items():
        if name in present:
            present[name].d = v.d
        else:
            nn.parameter.set_parameter(name, v)
    return state
