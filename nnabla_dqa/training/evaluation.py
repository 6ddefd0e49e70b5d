"""The score of a network on data."""

from __future__ import annotations

from typing import Optional

import numpy as np

from nnabla_dqa.data import Data, iterate
from nnabla_dqa.training.task import Task


def evaluate(task: Task, data: Data, batch_size: int) -> Optional[float]:
    """The task's metric over all samples of ``data``; None if it has no target.

    It is that of the network with one quantizer a layer and running statistics.
    """
    if not task.metric:
        return None
    total = 0.0
    for batch in iterate(data, batch_size, 0, 0, shuffle=False, drop_last=False):
        task.fill(task.evaluation_feeds, batch)
        task.output.forward(clear_buffer=True)
        total += score_sum(task.metric, task.output.d, batch[task.target])
    return total / len(data)


def score_sum(metric: str, output: np.ndarray, target: np.ndarray) -> float:
    """The metric summed over the samples of a mini-batch.

    Args:
        metric: ``"accuracy"`` or ``"mean squared error"``.
        output: (B, ...); rows beyond those of ``target`` do not count.
        target: (n, ...), n <= B; class numbers (n, 1) for accuracy, or 0 and 1
            where the output is a single number.
    """
    count = len(target)
    output = output[:count].reshape(count, -1)
    target = target.reshape(count, -1)
    if metric == "accuracy":
        if output.shape[1] == 1:
            return float(np.sum((output > 0.5) == (target > 0.5)))
        return float(np.sum(output.argmax(axis=1) == target[:, 0]))
    return float(np.sum(np.mean((output - target) ** 2, axis=1)))
