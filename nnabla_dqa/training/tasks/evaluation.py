"""The scores of networks on data."""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import List, Mapping, NamedTuple, Optional, Sequence, Tuple

import numpy as np

from nnabla_dqa.data import Data, DataError
from nnabla_dqa.data.prefetch import Prefetcher
from nnabla_dqa.distributed import Communicator, SingleProcess
from nnabla_dqa.onednn.accelerate import fast
from nnabla_dqa.quantization.graph_ops import Variable
from nnabla_dqa.solver.finite_check import NonFiniteError
from nnabla_dqa.training.tasks.inputs import Feed, check_labels, fill


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """A graph to evaluate: running statistics, and one quantizer a layer or the mixture.

    ``metric`` is ``"accuracy"`` or ``"mean squared error"`` of ``output``
    against the column ``target``; empty if there is no target. A single output
    counts as class 1 above ``threshold``.
    """

    feeds: Tuple[Feed, ...]
    output: Variable
    metric: str
    target: str
    threshold: float = 0.5

    @property
    def batch_size(self) -> int:
        """Samples that the graph takes at once."""
        return int(min(feed.variable.shape[0] for feed in self.feeds if feed.variable.shape))

    @property
    def classes(self) -> int:
        """How many classes the output tells apart."""
        return max(2, int(math.prod(self.output.shape[1:])))

    @functools.cached_property
    def _fast(self) -> Variable:
        """``output`` as the fastest code computes it. Deploying reads the given graph."""
        return fast([self.output], trains=False)[0]

    def target_of(self, batch: Mapping[str, np.ndarray]) -> np.ndarray:
        """What a mini-batch is compared with; raises DataError if a label is no class number."""
        target = batch[self.target]
        if self.metric == "accuracy":
            check_labels(self.target, target, self.classes)
        return target

    def score(self, batch: Mapping[str, np.ndarray]) -> Tuple[float, float]:
        """:func:`score_sums` of a mini-batch.

        Raises:
            DataError: A label is no class number.
            NonFiniteError: The output is NaN or infinite.
        """
        target = self.target_of(batch)
        fill(self.feeds, batch)
        self._fast.forward(clear_buffer=True)
        return score_sums(self.metric, self.output.d, target, self.threshold)


class Measured(NamedTuple):
    """The metric over ``samples`` of them, and for accuracy that of the five highest outputs."""

    value: float
    top5: float
    samples: int


def evaluate(
    evaluations: Sequence[Evaluation],
    data: Data,
    communicator: Optional[Communicator] = None,
    workers: int = 0,
) -> List[Measured]:
    """The scores of graphs with the same target over all samples of ``data``.

    Args:
        evaluations: The graphs; each sample is read once for all of them.
        data: Samples that it leaves out (photos that cannot be read) are not counted.
        communicator: Processes that share the samples.
        workers: Threads that read ahead.

    Raises:
        DataError: A label is no class number, or no sample can be read.
        NonFiniteError: An output is NaN or infinite.
    """
    comm = communicator or SingleProcess()
    first = evaluations[0]
    rows = np.arange(len(data))[comm.rank :: comm.size]
    parts = [rows[i : i + first.batch_size] for i in range(0, len(rows), first.batch_size)]
    totals = np.zeros(1 + 2 * len(evaluations))
    with Prefetcher(data.batch, parts, workers) as batches:
        for batch in batches:
            count = len(batch[first.target])
            if count:
                scores = [score for one in evaluations for score in one.score(batch)]
                totals += [count, *scores]
    samples, *sums = np.sum(comm.gather(totals.tolist()), axis=0).tolist()
    if not samples:
        raise DataError("no validation sample can be read")
    return [Measured(a / samples, b / samples, int(samples)) for a, b in zip(sums[::2], sums[1::2])]


def score_sums(
    metric: str, output: np.ndarray, target: np.ndarray, threshold: float = 0.5
) -> Tuple[float, float]:
    """The metric summed over the samples of a mini-batch, and that of the five highest outputs.

    Of equal outputs the first counts as the highest, so that a network whose
    output is constant gains nothing.

    Args:
        metric: ``"accuracy"`` or ``"mean squared error"``.
        output: (B, ...); rows beyond those of ``target`` do not count.
        target: (n, ...), n <= B; class numbers (n, 1) for accuracy, or 0 and 1
            where the output is a single number.
        threshold: A single output above it counts as class 1.

    Raises:
        NonFiniteError: An output is NaN or infinite.
    """
    count = len(target)
    output = output[:count].reshape(count, -1)
    target = target.reshape(count, -1)
    if not np.isfinite(output).all():
        raise NonFiniteError("the network's output is NaN or infinite on the validation data")
    if metric != "accuracy":
        return float(np.sum(np.mean((output - target) ** 2, axis=1))), 0.0
    if output.shape[1] == 1:
        return float(np.sum((output > threshold) == (target > 0.5))), float(count)
    label = target[:, :1].astype(np.int64)
    own = np.take_along_axis(output, label, axis=1)
    before = np.arange(output.shape[1]) < label
    rank = ((output > own) | (before & (output == own))).sum(axis=1)
    return float(np.sum(rank == 0)), float(np.sum(rank < 5))
