"""Running statistics of batch normalization in a live graph: which they are, and new ones."""

from __future__ import annotations

from typing import Any, Dict, Iterable, List, Mapping, Optional, Sequence, Tuple

import numpy as np

from nnabla_dqa.graph.traverse import LiveGraph
from nnabla_dqa.nnp.bn_reestimate import _Moments
from nnabla_dqa.nnp.live import NORMALIZATION
from nnabla_dqa.quantization.graph_ops import Variable
from nnabla_dqa.training.tasks.inputs import Feed, fill


def running_statistics(function: Any) -> Optional[Tuple[Variable, Variable]]:
    """Mean and variance that a function moves; None if it moves none."""
    arguments: Dict[str, Any] = function.arguments
    if function.info.type_name not in NORMALIZATION or not arguments.get("batch_stat", True):
        return None
    first = 3 - bool(arguments.get("no_bias")) - bool(arguments.get("no_scale"))
    mean, variance = function.inputs[first : first + 2]
    return mean, variance


def moving(loss: Variable) -> List[Any]:
    """The arrays of all running statistics that a graph moves."""
    found = [running_statistics(function) for function in LiveGraph.of({"loss": loss}).functions]
    arrays = [v.data for pair in found if pair is not None for v in pair if v.parent is None]
    return list(dict.fromkeys(arrays))


def estimate(
    output: Variable, feeds: Sequence[Feed], batches: Iterable[Mapping[str, np.ndarray]]
) -> None:
    """Set running statistics to mean and variance of what every normalization sees.

    Running statistics follow weights that jump from grid point to grid point
    late; moments that are pooled over all samples do not.

    Args:
        output: Of a graph on batch statistics with one quantizer a layer.
        feeds: Its inputs.
        batches: Mini-batches as large as the inputs.

    Raises:
        ValueError: A normalization has more than one channel axis.
    """
    moments: Dict[Any, Tuple[_Moments, Variable, Variable]] = {}
    for function in LiveGraph.of({"y": output}).functions:
        pair = running_statistics(function)
        if pair is not None:
            axes = function.arguments["axes"]
            if len(axes) > 1:
                raise ValueError(
                    f"a {function.info.type_name} normalizes over axes {list(axes)}; statistics "
                    f"are computed for one channel axis only"
                )
            moments[function] = (_Moments(), *pair)

    def note(function: Any) -> None:
        if function in moments:
            axis = function.arguments["axes"][0]
            moments[function][0].add(function.inputs[0].d, axis)

    for batch in batches:
        fill(feeds, batch)
        output.forward(function_pre_hook=note)
    for moment, mean, variance in moments.values():
        if moment.count:
            mean.d = moment.mean.reshape(mean.shape)
            variance.d = moment.variance.reshape(variance.shape)
