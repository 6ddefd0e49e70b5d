"""Normalization of pixels, inside a network."""

from __future__ import annotations

from typing import Tuple

import nnabla as nn
import nnabla.parametric_functions as PF
import numpy as np

from nnabla_dqa.quantization.graph_ops import Variable


def normalized(x: Variable, mean: Tuple[float, ...], std: Tuple[float, ...], axis: int) -> Variable:
    """``(x - mean) / std`` by channel, inside the network: a deployed file takes plain pixels.

    Args:
        x: Images, pixels from 0 to 1.
        mean: By channel.
        std: By channel.
        axis: Of the channels.
    """
    shape = tuple(3 if i == axis else 1 for i in range(4))
    epsilon = 1e-5
    variance = np.square(np.array(std, np.float64)) - epsilon
    values = {
        "mean": np.array(mean, np.float32).reshape(shape),
        "var": variance.astype(np.float32).reshape(shape),
    }
    y = PF.batch_normalization(
        x,
        [axis],
        eps=epsilon,
        batch_stat=False,
        fix_parameters=True,
        param_init=values,
        name="pixels",
    )
    # Fixed in this graph, they would still be given to a solver, whose weight decay shrinks them.
    with nn.parameter_scope("pixels"):
        for parameter in nn.get_parameters().values():
            parameter.need_grad = False
    return y
