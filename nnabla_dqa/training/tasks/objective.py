"""The graphs of a training on networks of an NNP: the loss, and what evaluates it."""

from __future__ import annotations

import math
from functools import reduce
from typing import AbstractSet, Mapping, Optional, Tuple

import nnabla.functions as F

from nnabla_dqa._util.devices import in_float32
from nnabla_dqa.layers.scopes import hard
from nnabla_dqa.nnp.inspect import producer, target_inputs
from nnabla_dqa.nnp.live import Built, Program
from nnabla_dqa.quantization.graph_ops import Variable
from nnabla_dqa.recipes.recipe import DISTILLATION, DataRecipe, Recipe, RecipeError
from nnabla_dqa.training.tasks.evaluation import Evaluation
from nnabla_dqa.training.tasks.inputs import Shape
from nnabla_dqa.training.tasks.losses import (
    Teacher,
    class_counts,
    distance,
    logits_of,
    named_loss,
    scored,
    taught,
    taught_outputs,
)
from nnabla_dqa.training.tasks.network import Objective
from nnabla_dqa.training.tasks.plan import Plan, Run, columns_of, network_inputs


def make_objective(
    program: Program,
    plan: Plan,
    recipe: Recipe,
    shapes: Mapping[str, Shape],
    teacher: Optional[Teacher] = None,
    batch_size: Optional[int] = None,
) -> Objective:
    """Build the graphs that ``recipe`` needs.

    Args:
        program: Of the converted file.
        plan: What :func:`~nnabla_dqa.training.tasks.plan.resolve` makes of file and recipe.
        recipe: What to do.
        shapes: Of one sample, for each column of the data.
        teacher: What it learns from besides, or with ``loss: distillation`` alone.
        batch_size: Of a step; default: the recipe's.

    Raises:
        RecipeError: A network, output or loss is not there.
        DataError: No column for an input, or one of another shape.
    """
    file, size = program.file, batch_size or recipe.batch_size
    proto = file.network(plan.network)
    columns = columns_of(file, recipe.data, shapes, plan.columns)
    built = program.build(plan.network, size, batch_stat=None if plan.kind == "file" else True)
    for name, v in built.inputs.items():
        if v.shape and v.shape[0] != size:
            raise RecipeError(
                f"key 'batch_size': input {name} of network {plan.network} has a fixed batch of "
                f"{v.shape[0]}, not {size}; use that"
            )
    counts, labels = class_counts(built, proto), target_inputs(proto)
    feeds = [
        columns.feed(name, v, counts.get(name, 0), name in labels)
        for name, v in built.inputs.items()
    ]
    with in_float32():
        if plan.kind == "file":
            loss = reduce(F.add2, [F.mean(built.variables[name]) for name in plan.losses])
            own = {n: v for n, v in built.inputs.items() if n not in labels and n not in counts}
            student = {} if teacher is None else taught_outputs(built, proto, plan.run.outputs)
            loss = taught(loss, student, own, teacher, recipe, size)
            known = network_inputs(file.network(plan.run.network))
            compared = [f.column for name, f in zip(built.inputs, feeds) if name in labels]
            others = [f.column for name, f in zip(built.inputs, feeds) if name not in known]
            target = next(iter([*compared, *others]), "")
        elif plan.kind == DISTILLATION:
            outputs = {name: logits_of(built, proto, name) for name in plan.run.outputs}
            assert teacher is not None
            loss = distance(outputs, built.inputs, teacher, recipe, size)
            target = columns.default_target if columns.default_target in shapes else ""
        else:
            logits = logits_of(built, proto, plan.run.output)
            loss, label = named_loss(plan.kind, logits, built.variables[plan.run.output])
            classes = logits.variable.shape[1] if plan.kind == "softmax_cross_entropy" else 0
            target = columns.target(feeds)
            feeds.append(columns.feed_column(target, label, classes, "the loss"))
            student = {plan.run.output: scored(plan.kind, logits, built.variables[plan.run.output])}
            loss = taught(loss, student, built.inputs, teacher, recipe, size)
    kinds = {plan.kind, *(f.type for f in proto.function)}
    evaluation, _ = make_evaluation(
        program, plan.run, recipe.data, shapes, recipe.batch_size, target, kinds
    )
    return Objective(loss, tuple(feeds), evaluation)


def make_evaluation(
    program: Program,
    run: Run,
    data: DataRecipe,
    shapes: Mapping[str, Shape],
    batch_size: int,
    target: Optional[str] = None,
    kinds: AbstractSet[str] = frozenset(),
) -> Tuple[Evaluation, Built]:
    """Build the graph that is run after training, with the target quantizers alone.

    Args:
        program: Of any file.
        run: The network and its output.
        data: Its columns count.
        shapes: Of one sample, for each column of the data.
        batch_size: Samples at a time.
        target: The column to compare with, "" for none; default: ``y``, or the
            column that feeds no input.
        kinds: Functions of the training network, or the loss: whether a single
            output is a probability, a logit or just a number.

    Returns:
        The graph, and all variables of its network.

    Raises:
        RecipeError, DataError: As :func:`make_objective`.
    """
    file = program.file
    columns = columns_of(file, data, shapes, run.columns)
    with hard():
        built = program.build(run.network, batch_size, batch_stat=False, dropout=False)
    labels = target_inputs(file.network(run.network))
    feeds = [columns.feed(name, v, 0, name in labels) for name, v in built.inputs.items()]
    if target is None:
        target = columns.target(feeds)
    made = producer(file.network(run.network), run.output)
    sigmoid = made is not None and made.type == "Sigmoid"
    logit = bool({"SigmoidCrossEntropy", "sigmoid_cross_entropy"} & kinds) and not sigmoid
    binary = "BinaryCrossEntropy" in kinds or logit or (sigmoid and not kinds)
    result = built.variables[run.output]
    metric = make_metric(shapes.get(target), result, binary)
    threshold = 0.0 if logit else 0.5
    return Evaluation(tuple(feeds), result, metric, target, threshold), built


def make_metric(target: Optional[Shape], output: Variable, binary: bool = False) -> str:
    """How to compare an output with targets of this shape; empty if they do not fit."""
    if target is None:
        return ""
    values, targets = math.prod(output.shape[1:]), math.prod(target)
    if targets == 1 and (values > 1 or binary):
        return "accuracy"
    return "mean squared error" if targets == values else ""
