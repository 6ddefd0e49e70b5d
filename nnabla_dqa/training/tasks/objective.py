"""What a recipe makes of a file: a graph with a loss, one to evaluate, and what feeds them."""

from __future__ import annotations

import dataclasses
import itertools
import math
from functools import reduce
from typing import AbstractSet, Any, Dict, Iterator, Mapping, Optional, Tuple

import nnabla as nn
import nnabla.functions as F
import numpy as np

from nnabla_dqa.data import Data, iterate
from nnabla_dqa.layers.scopes import hard
from nnabla_dqa.nnp.file import NetworkFile
from nnabla_dqa.nnp.inspect import producer, target_inputs
from nnabla_dqa.nnp.live import Built, Program
from nnabla_dqa.nnp_format.members import NNPError
from nnabla_dqa.quantization.graph_ops import Variable
from nnabla_dqa.recipes.recipe import Recipe, RecipeError
from nnabla_dqa.training.tasks.inputs import Columns, Feed, Shape, check_labels
from nnabla_dqa.training.tasks.losses import (
    class_counts,
    distillation,
    logits_of,
    named_loss,
)
from nnabla_dqa.training.tasks.plan import Plan, executor_columns, make_plan, outputs_of, runtime


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """A graph to evaluate: one quantizer a layer, running statistics.

    ``metric`` is ``"accuracy"`` or ``"mean squared error"`` of ``output``
    against the column ``target``; empty if there is no target. A single output
    counts as class 1 above ``threshold``.
    """

    evaluation_feeds: Tuple[Feed, ...]
    output: Variable
    metric: str
    target: str
    threshold: float

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
    columns = Columns(shapes, recipe, file)
    columns.add(plan.columns)
    batch_stat = None if plan.kind == "file" else True
    built = program.build(plan.network, recipe.batch_size, batch_stat=batch_stat)
    counts = class_counts(built, proto)
    labels = target_inputs(proto)
    for name, v in built.inputs.items():
        if v.shape and v.shape[0] != recipe.batch_size:
            raise RecipeError(
                f"key 'batch_size': input {name} of network {plan.network} has a fixed batch of "
                f"{v.shape[0]}, not {recipe.batch_size}; use that"
            )
    feeds = [
        columns.feed(name, v, counts.get(name, 0), name in labels)
        for name, v in built.inputs.items()
    ]
    network, output = runtime(file, recipe)
    if plan.kind == "file":
        loss = reduce(F.add2, [F.mean(built.variables[name]) for name in plan.losses])
        known = network_inputs(file.network(network))
        compared = [f.column for name, f in zip(built.inputs, feeds) if name in labels]
        others = [f.column for name, f in zip(built.inputs, feeds) if name not in known]
        target = next(iter([*compared, *others]), "")
    elif plan.kind == "distillation":
        loss = _distance(built, program, recipe, teacher)
        target = columns.default_target if columns.default_target in shapes else ""
    else:
        logits = logits_of(built, proto, output)
        loss, label = named_loss(plan.kind, logits, built.variables[output])
        classes = logits.variable.shape[1] if plan.kind == "softmax_cross_entropy" else 0
        target = columns.target(feeds)
        feeds.append(columns.feed_column(target, label, classes, "the loss"))
    kinds = {plan.kind, *(f.type for f in proto.function)}
    evaluation = make_evaluation(program, recipe, shapes, target, kinds)
    return Task(
        **{f.name: getattr(evaluation, f.name) for f in dataclasses.fields(evaluation)},
        plan=plan,
        loss=loss,
        feeds=tuple(feeds),
    )


def _distance(built: Built, program: Program, recipe: Recipe, teacher: Program) -> Variable:
    """The distillation loss over all outputs of the network that is run.

    Raises:
        NNPError: The teacher has other inputs or outputs.
    """
    file, path = program.file, teacher.file.archive.path
    network, output = runtime(file, recipe)
    compared = outputs_of(file, recipe, network, output)
    plain = dataclasses.replace(recipe, network=None, output=None)
    own, first = runtime(teacher.file, plain)
    proto = teacher.file.network(own)
    made = {name for function in proto.function for name in function.output}
    taught = compared if made.issuperset(compared) else outputs_of(teacher.file, plain, own, first)
    inputs = network_inputs(proto, buffers=True)
    if set(inputs) != set(built.inputs) or len(taught) != len(compared):
        raise NNPError(
            f"{path}: is no teacher for this file: it takes {', '.join(inputs)} and gives "
            f"{', '.join(taught)}, wanted are {', '.join(built.inputs)} and {', '.join(compared)}"
        )
    goal = teacher.build(own, recipe.batch_size, built.inputs, batch_stat=False, dropout=False)
    distances = []
    for name, other in zip(compared, taught):
        pair = logits_of(built, file.network(network), name), logits_of(goal, proto, other)
        if pair[0].variable.shape != pair[1].variable.shape:
            raise NNPError(
                f"{path}: is no teacher for this file: output {other} has shape "
                f"{pair[1].variable.shape}, {name} has {pair[0].variable.shape}"
            )
        distances.append(distillation(*pair, recipe.distillation_temperature))
    return reduce(F.add2, distances)


def make_evaluation(
    program: Program,
    recipe: Recipe,
    shapes: Mapping[str, Shape],
    target: Optional[str] = None,
    kinds: AbstractSet[str] = frozenset(),
) -> Evaluation:
    """Build the graph that is run after training, with the lowest bit widths alone.

    Args:
        program: Of any file.
        recipe: Its batch size, output and columns count.
        shapes: Of one sample, for each column of the data.
        target: The column to compare with, "" for none; default: ``y``, or the
            column that feeds no input.
        kinds: Functions of the training network, or the loss: whether a single
            output is a probability, a logit or just a number.

    Raises:
        RecipeError, DataError: As :func:`make_task`.
    """
    file = program.file
    network, output = runtime(file, recipe)
    columns = Columns(shapes, recipe, file)
    columns.add(executor_columns(file, network))
    with hard():
        built = program.build(network, recipe.batch_size, batch_stat=False, dropout=False)
    labels = target_inputs(file.network(network))
    feeds = [columns.feed(name, v, 0, name in labels) for name, v in built.inputs.items()]
    if target is None:
        target = columns.target(feeds)
    made = producer(file.network(network), output)
    sigmoid = made is not None and made.type == "Sigmoid"
    logit = bool({"SigmoidCrossEntropy", "sigmoid_cross_entropy"} & kinds) and not sigmoid
    binary = "BinaryCrossEntropy" in kinds or logit or (sigmoid and not kinds)
    result = built.variables[output]
    metric = _metric(shapes.get(target), result, binary)
    return Evaluation(tuple(feeds), result, metric, target, 0.0 if logit else 0.5)


def _metric(target: Optional[Shape], output: Variable, binary: bool) -> str:
    if target is None:
        return ""
    values, targets = math.prod(output.shape[1:]), math.prod(target)
    if targets == 1 and (values > 1 or binary):
        return "accuracy"
    return "mean squared error" if targets == values else ""


def input_batches(
    file: NetworkFile, recipe: Recipe, data: Data, batch_size: int, count: int
) -> Iterator[Dict[str, np.ndarray]]:
    """``count`` mini-batches for the inputs of the network that is run, in the seed's order.

    Raises:
        DataError: No column for an input, or one of another shape.
    """
    network, _ = runtime(file, recipe)
    columns = Columns(data.shapes, recipe, file)
    columns.add(executor_columns(file, network))
    proto = file.network(network)
    labels = target_inputs(proto)
    inputs = network_inputs(proto, buffers=True)
    feeds = {
        name: columns.feed(name, nn.Variable((1, *shape)), 0, name in labels)
        for name, shape in inputs.items()
    }
    for batch in itertools.islice(iterate(data, batch_size, recipe.seed, 0), count):
        yield {
            name: batch[feed.column].reshape(batch_size, *inputs[name])
            for name, feed in feeds.items()
        }


def network_inputs(network: Any, buffers: bool = False) -> Dict[str, Shape]:
    """The variables that no function of a definition computes, with the shape of one sample.

    With ``buffers``, without parameters.
    """
    made = {name for function in network.function for name in function.output}
    return {
        v.name: tuple(v.shape.dim)[1:]
        for v in network.variable
        if v.name not in made and (v.type == "Buffer" or not buffers)
    }
