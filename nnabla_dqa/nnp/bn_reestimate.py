"""Running statistics of batch normalization, computed anew from data."""

from __future__ import annotations

from typing import Dict, Iterable, List, Mapping, Tuple

import nnabla as nn
import numpy as np

from nnabla_dqa.layers.scopes import hard
from nnabla_dqa.nnp.live import NORMALIZATION, Program, normalization_of


class _Moments:
    """Mean and sum of squared deviations, merged batch by batch (Chan et al., 1979)."""

    def __init__(self) -> None:
        self.count = 0
        self.mean: np.ndarray = np.zeros(())
        self.deviation: np.ndarray = np.zeros(())

    def add(self, values: np.ndarray, axis: int) -> None:
        """``values`` with the channels on ``axis``."""
        rows = np.moveaxis(values.astype(np.float64), axis, 0).reshape(values.shape[axis], -1)
        count, mean = rows.shape[1], rows.mean(axis=1)
        deviation = ((rows - mean[:, None]) ** 2).sum(axis=1)
        total = self.count + count
        gap = mean - self.mean
        self.deviation = self.deviation + deviation + gap**2 * (self.count * count / total)
        self.mean = self.mean + gap * (count / total)
        self.count = total

    @property
    def variance(self) -> np.ndarray:
        """Unbiased, as NNabla's running variance."""
        return self.deviation / max(1, self.count - 1)


def estimate_statistics(
    program: Program,
    network: str,
    batches: Iterable[Mapping[str, np.ndarray]],
    batch_size: int,
    select: str = "target",
) -> Dict[str, np.ndarray]:
    """Mean and variance of what every normalization of a network sees.

    The network runs with one quantizer a layer and normalizes by batch
    statistics; moments are pooled over all samples. Running statistics follow
    weights that jump from grid point to grid point late; these do not.

    Args:
        program: Its parameters are left as they are.
        network: Name of the network.
        batches: Arrays of ``batch_size`` samples for each input of the network.
        batch_size: Samples of a batch, at least 2.
        select: Which quantizer of each layer: ``"target"`` or ``"argmax"``.

    Returns:
        New values of the statistics by parameter name, shaped like them; empty
        if the network normalizes nothing.
    """
    proto = program.file.network(network)
    found: List[Tuple[str, int, str, str]] = []
    for function in proto.function:
        own = normalization_of(function)
        if own is None:
            continue
        axes = list(getattr(function, NORMALIZATION[function.type]).axes) or [1]
        if len(axes) > 1:
            raise ValueError(
                f"{function.name} of network {network} normalizes over axes {axes}; statistics are "
                f"computed for one channel axis only"
            )
        found.append((function.input[0], axes[0], own.mean, own.variance))
    if not found:
        return {}
    before = {name: v.d.copy() for name, v in program.parameters().items()}
    with hard(select):
        built = program.build(network, batch_size, batch_stat=True, dropout=False)
    moments = [_Moments() for _ in found]
    outputs = list(built.outputs.values())
    for values in batches:
        for name, variable in built.inputs.items():
            if name not in values or values[name].shape != variable.shape:
                raise ValueError(
                    f"a batch of samples has no {name!r} of shape {variable.shape}, which network "
                    f"{network} takes"
                )
            variable.d = values[name]
        nn.forward_all(outputs)
        for (name, axis, _, _), moment in zip(found, moments):
            moment.add(built.variables[name].d, axis)
    parameters = program.parameters()
    # The run itself has moved the running statistics.
    for name, array in before.items():
        parameters[name].d = array
    result = {}
    for (_, _, mean, variance), moment in zip(found, moments):
        if moment.count:
            result[mean] = moment.mean.reshape(before[mean].shape).astype(np.float32)
            result[variance] = moment.variance.reshape(before[variance].shape).astype(np.float32)
    return result
