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
        mean = rows.mean(axis=1)
        self.merge(rows.shape[1], mean, ((rows - mean[:, None]) ** 2).sum(axis=1))

    def merge(self, count: int, mean: np.ndarray, deviation: np.ndarray) -> None:
        """``count`` more values of each channel, by their mean and squared deviations from it."""
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


def estimate(
    output: Variable, batches: Iterable[object], computed: Optional[Variable] = None
) -> List[Variable]:
    """Set running statistics to mean and variance of what every normalization sees.

    Running statistics follow weights that jump from grid point to grid point
    late; moments that are pooled over all samples do not.

    Args:
        output: Of a graph on batch statistics with one quantizer a layer.
        batches: Each step of it puts a mini-batch into the inputs of the graph.
        computed: ``output`` as something faster computes it, from the same arrays
            (:func:`nnabla_dqa.onednn.accelerate.fast`); default: ``output`` itself.

    Returns:
        The statistics that were set.

    Raises:
        ValueError: A normalization has more than one channel axis.
    """
    computed = output if computed is None else computed
    found = _normalizations(output)
    arrays = [seen.mean.data for seen in found]
    visible = [] if computed is output else _normalizations(computed)
    # What has become part of another function cannot be looked into. It moves its running
    # statistics, though, and from zeros these are (1 - decay rate) times those of the batch.
    shown = {seen.mean.data for seen in visible}
    inside = [seen for seen in found if seen.mean.data not in shown]
    if computed is output or any(not s.share or arrays.count(s.mean.data) > 1 for s in inside):
        computed, inside, visible = output, [], found
    by_function = {seen.function: seen for seen in visible}

    def note(function: Any) -> None:
        if function in by_function:
            by_function[function].look()

    for _ in batches if found else ():
        for seen in inside:
            seen.mean.d = seen.variance.d = 0
        computed.forward(function_pre_hook=note)
        for seen in inside:
            seen.read()
    changed = []
    for seen in [*visible, *inside]:
        if seen.moments.count:
            seen.set()
            changed += [seen.mean, seen.variance]
    return changed


def _normalizations(output: Variable) -> List[_Seen]:
    functions: Dict[Any, None] = {}
    output.visit(lambda function: functions.setdefault(function))
    found = [_Seen.of(function) for function in functions]
    return [seen for seen in found if seen is not None]


class _Seen:
    """What a normalization has seen, and where its running statistics are."""

    def __init__(self, function: Any, mean: Variable, variance: Variable) -> None:
        axes = function.arguments["axes"]
        if len(axes) > 1:
            raise ValueError(
                f"a {function.info.type_name} normalizes over axes {list(axes)}; statistics "
                f"are computed for one channel axis only"
            )
        self.function, self.mean, self.variance = function, mean, variance
        self.axis = int(axes[0])
        self.share = 1.0 - float(function.arguments["decay_rate"])
        self.moments = _Moments()

    @classmethod
    def of(cls, function: Any) -> Optional[_Seen]:
        """None for a function that moves no running statistics."""
        pair = running_statistics(function)
        return None if pair is None else cls(function, *pair)

    def look(self) -> None:
        """Take in the mini-batch that is about to be normalized."""
        self.moments.add(self.function.inputs[0].d, self.axis)

    def read(self) -> None:
        """Take in the mini-batch by which the running statistics moved from zeros."""
        x = self.function.inputs[0]
        count = x.size // x.shape[self.axis]
        mean, variance = (v.d.astype(np.float64).ravel() for v in (self.mean, self.variance))
        # Of a single value a channel, NNabla's unbiased variance is no number.
        deviation = variance / self.share * (count - 1) if count > 1 else np.zeros_like(variance)
        self.moments.merge(count, mean / self.share, deviation)

    def set(self) -> None:
        """Write the moments of all mini-batches into the running statistics."""
        for v, values in ((self.mean, self.moments.mean), (self.variance, self.moments.variance)):
            v.d = values.reshape(v.shape).astype(np.float32)
