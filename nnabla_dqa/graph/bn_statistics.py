"""Running statistics of batch normalization in a live graph: which they are, and new ones."""

from __future__ import annotations

from typing import Any, Dict, Iterable, List, Optional, Tuple

import numpy as np

from nnabla_dqa.graph.traverse import LiveGraph
from nnabla_dqa.quantization.graph_ops import Variable

NORMALIZATION = ("BatchNormalization", "FusedBatchNormalization", "SyncBatchNormalization")


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


def running_statistics(function: Any) -> Optional[Tuple[Variable, Variable]]:
    """Mean and variance that a function moves when it is computed; None if it moves none."""
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


def estimate(output: Variable, batches: Iterable[object]) -> List[Variable]:
    """Set running statistics to mean and variance of what every normalization sees.

    Running statistics follow weights that jump from grid point to grid point
    late; moments that are pooled over all samples do not.

    Args:
        output: Of a graph on batch statistics with one quantizer a layer.
        batches: Each step of it puts a mini-batch into the inputs of the graph.

    Returns:
        The statistics that were set.

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

    for _ in batches if moments else ():
        output.forward(function_pre_hook=note)
    changed = []
    for moment, mean, variance in moments.values():
        if moment.count:
            mean.d = moment.mean.reshape(mean.shape).astype(np.float32)
            variance.d = moment.variance.reshape(variance.shape).astype(np.float32)
            changed += [mean, variance]
    return changed
