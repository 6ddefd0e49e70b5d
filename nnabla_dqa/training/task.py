"""What a recipe makes of a file: a graph with a loss, one to evaluate, and what feeds them."""

from __future__ import annotations

import dataclasses
import itertools
import math
from functools import reduce
from typing import Any, Dict, Iterator, List, Mapping, NamedTuple, Optional, Set, Tuple

import nnabla as nn
import nnabla.functions as F
import numpy as np

from nnabla_dqa.contexts import hard
from nnabla_dqa.data import Data, DataError, iterate
from nnabla_dqa.graph.network_file import NetworkFile
from nnabla_dqa.graph.program import Program
from nnabla_dqa.graph_ops import Variable
from nnabla_dqa.training.losses import (
    class_counts,
    distillation,
    logits_of,
    named_loss,
    producer,
)
from nnabla_dqa.training.plan import Plan, executor_columns, make_plan, outputs_of, runtime
from nnabla_dqa.training.recipe import Recipe

Shape = Tuple[int, ...]
LABEL = "y"
"""The column that holds targets, unless the file or the recipe says otherwise."""


class Feed(NamedTuple):
    """A variable to be filled from a column; ``classes`` > 0: it holds class numbers below that."""

    column: str
    variable: Variable
    classes: int


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """A graph to evaluate: one quantizer a layer, running statistics.

    ``metric`` is ``"accuracy"`` or ``"mean squared error"`` of ``output``
    against the column ``target``; empty if there is no target.
    """

    evaluation_feeds: Tuple[Feed, ...]
    output: Variable
    metric: str
    target: str

    def fill(self, feeds: Tuple[Feed, ...], batch: Mapping[str, np.ndarray]) -> None:
        """Put a mini-batch into the variables.

        Raises:
            DataError: A label is no class number.
        """
        for column, variable, classes in feeds:
            values = batch[column]
            if classes:
                check_labels(column, values, classes)
            rows = variable.shape[0]
            if len(values) < rows:
                # The last mini-batch of an evaluation; its surplus is not counted.
                values = np.concatenate([values, np.repeat(values[-1:], rows - len(values), 0)])
            variable.d = values.reshape(variable.shape)


@dataclasses.dataclass(frozen=True)
class Task(Evaluation):
    """What a recipe makes of a file: ``loss`` to train, and what evaluates it."""

    plan: Plan
    loss: Variable
    feeds: Tuple[Feed, ...]


def check_labels(column: str, values: np.ndarray, classes: int) -> None:
    """Raise DataError unless ``values`` are class numbers below ``classes``."""
    wrong = values[(values < 0) | (values >= classes) | (values != np.floor(values))]
    if wrong.size:
        raise DataError(
            f"column {column!r} has the label {wrong.flat[0]:g}; the network knows {classes} "
            f"classes, labels are whole numbers from 0 to {classes - 1}"
        )


def make_task(
    program: Program, recipe: Recipe, shapes: Mapping[str, Shape], teacher: Any = None
) -> Task:
    """Build the graphs that ``recipe`` needs.

    Args:
        program: Of the converted file.
        recipe: What to do.
        shapes: Of one sample, for each column of the data.
        teacher: For distillation, the program of the float file.

    Raises:
        RecipeError: A network, output or loss is not there.
        DataError: No column for an input, or one of another shape.
    """
    file = program.file
    plan = make_plan(file, recipe)
    proto = file.network(plan.network)
    batch_stat = None if plan.kind == "file" else True
    built = program.build(plan.network, recipe.batch_size, batch_stat=batch_stat)
    counts = class_counts(built, proto)
    columns = _Columns(shapes, {**plan.columns, **(recipe.data.inputs or {})})
    feeds = [columns.feed(name, v, counts.get(name, 0)) for name, v in built.inputs.items()]
    network, output = runtime(file, recipe)
    if plan.kind == "file":
        loss = reduce(F.add2, [F.mean(built.variables[name]) for name in plan.losses])
        known = _inputs(file.network(network))
        labels = [f.column for f in feeds if f.classes]
        others = [f.column for name, f in zip(built.inputs, feeds) if name not in known]
        target = next(iter([*labels, *others]), "")
    elif plan.kind == "distillation":
        goal = teacher.build(plan.network, recipe.batch_size, built.inputs, batch_stat=False)
        compared = outputs_of(file, recipe, network, output)
        pairs = [(logits_of(built, proto, n), logits_of(goal, proto, n)) for n in compared]
        distances = [distillation(*pair, recipe.distillation_temperature) for pair in pairs]
        loss = reduce(F.add2, distances)
        target = LABEL if LABEL in shapes else ""
    else:
        logits = logits_of(built, proto, output)
        loss, label = named_loss(plan.kind, logits, built.variables[output])
        classes = logits.variable.shape[1] if plan.kind == "softmax_cross_entropy" else 0
        target = columns.target(feeds)
        feeds.append(columns.feed_column(target, label, classes, "the loss"))
    kinds = {plan.kind, *(f.type for f in proto.function)}
    binary = bool({"BinaryCrossEntropy", "SigmoidCrossEntropy", "sigmoid_cross_entropy"} & kinds)
    evaluation = make_evaluation(program, recipe, shapes, target, binary)
    return Task(
        **{f.name: getattr(evaluation, f.name) for f in dataclasses.fields(evaluation)},
        plan=plan,
        loss=loss,
        feeds=tuple(feeds),
    )


def make_evaluation(
    program: Program,
    recipe: Recipe,
    shapes: Mapping[str, Shape],
    target: Optional[str] = None,
    binary: Optional[bool] = None,
) -> Evaluation:
    """Build the graph that is run after training, with the lowest bit widths alone.

    Args:
        program: Of any file.
        recipe: Its batch size, output and columns count.
        shapes: Of one sample, for each column of the data.
        target: The column to compare with, "" for none; default: ``y``, or the
            column that feeds no input.
        binary: Whether a single output is a probability; default: if a sigmoid
            computes it.

    Raises:
        RecipeError, DataError: As :func:`make_task`.
    """
    file = program.file
    network, output = runtime(file, recipe)
    known = {**executor_columns(file, network), **(recipe.data.inputs or {})}
    if target is None or recipe.loss in (None, "file"):
        known = {**_training_columns(file), **known}
    columns = _Columns(shapes, known)
    with hard():
        built = program.build(network, recipe.batch_size, batch_stat=False)
    feeds = [columns.feed(name, v, 0) for name, v in built.inputs.items()]
    if target is None:
        target = columns.target(feeds)
    result = built.variables[output]
    if binary is None:
        made = producer(file.network(network), output)
        binary = made is not None and made.type == "Sigmoid"
    metric = _metric(shapes.get(target), result, binary)
    return Evaluation(tuple(feeds), result, metric, target)


def input_batches(
    file: NetworkFile, recipe: Recipe, data: Data, batch_size: int, count: int
) -> Iterator[Dict[str, np.ndarray]]:
    """``count`` mini-batches for the inputs of the network that is run, in the seed's order.

    Raises:
        DataError: No column for an input, or one of another shape.
    """
    network, _ = runtime(file, recipe)
    known = {**executor_columns(file, network), **(recipe.data.inputs or {})}
    columns = _Columns(data.shapes, known)
    proto = file.network(network)
    inputs = {
        v.name: tuple(v.shape.dim)[1:]
        for v in proto.variable
        if v.name in _inputs(proto) and v.type == "Buffer"
    }
    feeds = {
        name: columns.feed(name, nn.Variable((1, *shape)), 0) for name, shape in inputs.items()
    }
    for batch in itertools.islice(iterate(data, batch_size, recipe.seed, 0), count):
        yield {
            name: batch[feed.column].reshape(batch_size, *inputs[name])
            for name, feed in feeds.items()
        }


def _inputs(network: Any) -> Set[str]:
    made = {name for function in network.function for name in function.output}
    return {v.name for v in network.variable if v.name not in made}


def _training_columns(file: NetworkFile) -> Dict[str, str]:
    """Which column feeds which variable, as the file's optimizers say."""
    listed = [v for optimizer in file.archive.definition.optimizer for v in optimizer.data_variable]
    return {v.variable_name: v.data_name for v in listed}


def _metric(target: Optional[Shape], output: Variable, binary: bool) -> str:
    if target is None:
        return ""
    values, targets = math.prod(output.shape[1:]), math.prod(target)
    if targets == 1 and (values > 1 or binary):
        return "accuracy"
    return "mean squared error" if targets == values else ""


class _Columns:
    """Which column feeds which variable."""

    def __init__(self, shapes: Mapping[str, Shape], known: Mapping[str, str]) -> None:
        self._shapes = shapes
        self._known = known

    def feed(self, name: str, variable: Variable, classes: int) -> Feed:
        """For an input of a network: the column known for it, of its name, or by order."""
        column = self._known.get(name, name)
        if column not in self._shapes:
            # An input that the file does not speak of: samples are x, targets are y.
            column = LABEL if classes or name.endswith("_T") else "x"
        return self.feed_column(column, variable, classes, f"input {name}")

    def feed_column(self, column: str, variable: Variable, classes: int, where: str) -> Feed:
        """For a named column."""
        shape = self._shapes.get(column)
        if shape is None:
            raise DataError(
                f"no column {column!r} for {where}; the data have "
                f"{', '.join(self._shapes)}; name one in the recipe: data: {{inputs: ...}}"
            )
        if not _fits(shape, variable.shape[1:]):
            raise DataError(
                f"column {column!r} has samples of shape {shape}, {where} of the network takes "
                f"{tuple(variable.shape[1:])}"
            )
        return Feed(column, variable, classes)

    def target(self, feeds: List[Feed]) -> str:
        """The column with the targets of a named loss."""
        free = [c for c in self._shapes if c not in {feed.column for feed in feeds}]
        if LABEL in self._shapes or not free:
            return LABEL
        return free[0]


def _fits(sample: Tuple[int, ...], wanted: Tuple[int, ...]) -> bool:
    """Equal but for axes of size 1, or one of them flat."""
    if int(np.prod(sample)) != int(np.prod(wanted)):
        return False
    a, b = ([size for size in shape if size != 1] for shape in (sample, wanted))
    return a == b or len(a) <= 1 or len(b) <= 1
