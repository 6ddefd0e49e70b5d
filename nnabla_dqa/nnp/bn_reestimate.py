"""Running statistics of batch normalization, computed anew from data."""

from __future__ import annotations

from typing import Dict, Iterable, Iterator, Mapping

import nnabla.functions as F
import numpy as np

from nnabla_dqa.graph.bn_statistics import estimate
from nnabla_dqa.layers.scopes import hard
from nnabla_dqa.nnp.live import Program
from nnabla_dqa.onednn.accelerate import fast


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
    before = {name: v.d.copy() for name, v in program.parameters().items()}
    with hard(select):
        built = program.build(network, batch_size, batch_stat=True, dropout=False)

    def filled() -> Iterator[None]:
        for values in batches:
            for name, variable in built.inputs.items():
                if name not in values or values[name].shape != variable.shape:
                    raise ValueError(
                        f"a batch of samples has no {name!r} of shape {variable.shape}, which "
                        f"network {network} takes"
                    )
                variable.d = values[name]
            yield

    output = F.sink(*built.outputs.values())
    changed = estimate(output, filled(), fast([output], trains=False)[0])
    parameters = program.parameters()
    names = {v.data: name for name, v in parameters.items()}
    result = {names[v.data]: v.d.copy() for v in changed}
    # The run itself has moved the running statistics.
    for name, array in before.items():
        parameters[name].d = array
    return result
