"""The score of a network on data."""

from __future__ import annotations

import math
from typing import NamedTuple, Optional

import numpy as np

from nnabla_dqa._util.files import PathLike
from nnabla_dqa.data import Data, DataError, iterate, open_data
from nnabla_dqa.nnp.file import NetworkFile
from nnabla_dqa.nnp.live import Program
from nnabla_dqa.recipes.recipe import DataRecipe, Recipe
from nnabla_dqa.solver.finite_check import NonFiniteError
from nnabla_dqa.training.tasks.inputs import check_labels
from nnabla_dqa.training.tasks.objective import Evaluation, make_evaluation


def evaluate(task: Evaluation, data: Data, batch_size: int) -> Optional[float]:
    """The task's metric over all samples of ``data``; None if it has no target.

    It is that of the network with one quantizer a layer and running statistics.
    """
    if not task.metric:
        return None
    total = 0.0
    # A network may have a fixed batch; what it does not need is filled up and not counted.
    sizes = [variable.shape[0] for _, variable, _ in task.evaluation_feeds if variable.shape]
    batch_size = min([*sizes, batch_size])
    classes = max(2, math.prod(task.output.shape[1:]))
    for batch in iterate(data, batch_size, 0, 0, shuffle=False, drop_last=False):
        target = batch[task.target]
        if task.metric == "accuracy":
            check_labels(task.target, target, classes)
        task.fill(task.evaluation_feeds, batch)
        task.output.forward(clear_buffer=True)
        if not np.isfinite(task.output.d).all():
            raise NonFiniteError("the network's output is NaN or infinite on the data evaluated")
        total += score_sum(task.metric, task.output.d, target, task.threshold)
    return total / len(data)


class Score(NamedTuple):
    """What :func:`evaluate_file` measured."""

    metric: str
    value: float
    samples: int


def evaluate_file(
    path: PathLike,
    data: DataRecipe,
    batch_size: int = 100,
    output: Optional[str] = None,
) -> Score:
    """Run an NNP, plain, converted or deployed, over the validation part of ``data``.

    A converted file runs with the lowest bit width of each layer alone.

    Args:
        path: The NNP; the network of its first executor is run.
        data: ``data.train`` is where the samples are: a folder's validation
            part, or the file itself.
        batch_size: Samples at a time; does not change the result.
        output: Which output; default: the first.

    Returns:
        Accuracy (0 to 1) against class numbers, mean squared error against
        targets shaped like the output.

    Raises:
        NNPError, DataError, RecipeError: One line that names file, key or column.
    """
    recipe = Recipe(data, loss="distillation", output=output, batch_size=batch_size)
    samples = open_data(data.train, "validation", data.scale, data.image_shape)
    if data.limit is not None:
        samples = samples.take(min(data.limit, len(samples)))
    task = make_evaluation(Program(NetworkFile.read(path)), recipe, samples.shapes)
    value = evaluate(task, samples, batch_size)
    if value is None:
        raise DataError(
            f"{data.train}: no column to compare output of shape {task.output.shape[1:]} with; "
            f"the data have {', '.join(f'{k} {v}' for k, v in samples.shapes.items())}"
        )
    return Score(task.metric, value, len(samples))


def score_sum(metric: str, output: np.ndarray, target: np.ndarray, threshold: float = 0.5) -> float:
    """The metric summed over the samples of a mini-batch.

    Args:
        metric: ``"accuracy"`` or ``"mean squared error"``.
        output: (B, ...); rows beyond those of ``target`` do not count.
        target: (n, ...), n <= B; class numbers (n, 1) for accuracy, or 0 and 1
            where the output is a single number.
        threshold: A single output above it counts as class 1.
    """
    count = len(target)
    output = output[:count].reshape(count, -1)
    target = target.reshape(count, -1)
    if metric == "accuracy":
        if output.shape[1] == 1:
            return float(np.sum((output > threshold) == (target > 0.5)))
        return float(np.sum(output.argmax(axis=1) == target[:, 0]))
    return float(np.sum(np.mean((output - target) ** 2, axis=1)))
