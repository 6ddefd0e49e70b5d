"""What a recipe makes of a file: a graph with a loss, one to evaluate, and what feeds them."""

from __future__ import annotations

import dataclasses
from functools import reduce
from typing import Any, Dict, List, Mapping, NamedTuple, Optional, Set, Tuple

import nnabla as nn
import nnabla.functions as F
import numpy as np

from nnabla_dqa.contexts import hard
from nnabla_dqa.data import DataError
from nnabla_dqa.graph.network_file import NetworkFile
from nnabla_dqa.graph.program import Built, Program
from nnabla_dqa.graph_ops import Variable
from nnabla_dqa.training.losses import (
    class_counts,
    distillation,
    logits_of,
    named_loss,
    own_losses,
    producer,
)
from nnabla_dqa.training.recipe import LOSSES, Recipe, RecipeError

Shape = Tuple[int, ...]
LABEL = "y"
"""The column that holds targets, unless the file or the recipe says otherwise."""


class Plan(NamedTuple):
    """What is trained: a network, the loss variables it has itself or ``kind`` of loss to add.

    ``columns`` says which column of the data feeds which input, as far as the
    file tells.
    """

    network: str
    kind: str
    losses: Tuple[str, ...]
    columns: Dict[str, str]


class Feed(NamedTuple):
    """A variable to be filled from a column; ``classes`` > 0: it holds class numbers below that."""

    column: str
    variable: Variable
    classes: int


@dataclasses.dataclass(frozen=True)
class Task:
    """Graphs over one program: ``loss`` to train, ``output`` to evaluate.

    ``output`` uses the lowest bit widths alone and running statistics.

    ``metric`` is ``"accuracy"`` or ``"mean squared error"`` of ``output``
    against the column ``target``; empty if there is no target.
    """

    plan: Plan
    loss: Variable
    feeds: Tuple[Feed, ...]
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


def check_labels(column: str, values: np.ndarray, classes: int) -> None:
    """Raise DataError unless ``values`` are class numbers below ``classes``."""
    wrong = values[(values < 0) | (values >= classes) | (values != np.floor(values))]
    if wrong.size:
        raise DataError(
            f"column {column!r} has the label {wrong.flat[0]:g}; the network knows {classes} "
            f"classes, labels are whole numbers from 0 to {classes - 1}"
        )


def make_plan(file: NetworkFile, recipe: Recipe) -> Plan:
    """Which network and which loss a recipe means for a file.

    Raises:
        RecipeError: The file has no loss of its own and the recipe names none,
            or a network or output that is not there.
    """
    if recipe.loss in (None, "file"):
        own = _own_plan(file, recipe)
        if own is not None:
            return own
        raise RecipeError(
            f"key 'loss': {file.archive.path} has no training network with a loss; name one of "
            f"{', '.join(kind for kind in LOSSES if kind != 'file')}"
        )
    network, _ = runtime(file, recipe)
    return Plan(network, str(recipe.loss), (), _executor_columns(file, network))


def _own_plan(file: NetworkFile, recipe: Recipe) -> Optional[Plan]:
    for optimizer in file.archive.definition.optimizer:
        losses = tuple(v.variable_name for v in optimizer.loss_variable)
        if losses and recipe.network in (None, optimizer.network_name):
            file.network(optimizer.network_name)
            columns = {v.variable_name: v.data_name for v in optimizer.data_variable}
            return Plan(optimizer.network_name, "file", losses, columns)
    for network in file.archive.definition.network:
        if recipe.network in (None, network.name) and own_losses(network):
            return Plan(network.name, "file", tuple(own_losses(network)), {})
    return None


def runtime(file: NetworkFile, recipe: Recipe) -> Tuple[str, str]:
    """The network that is run after training, and its output.

    The first executor's; without one, the first network without a loss.
    """
    definition = file.archive.definition
    network, output = "", recipe.output or ""
    executors = [e for e in definition.executor if e.output_variable]
    if recipe.loss not in (None, "file") and recipe.network:
        network = recipe.network
        executors = [e for e in executors if e.network_name == network]
    if executors:
        network = executors[0].network_name
        output = output or executors[0].output_variable[0].variable_name
    elif not network:
        plain = [n.name for n in definition.network if not own_losses(n)]
        network = plain[0] if plain else definition.network[0].name
    proto = file.network(network)
    if not output:
        used = {name for function in proto.function for name in function.input}
        made = [name for function in proto.function for name in function.output]
        output = next(name for name in made if name not in used)
    if producer(proto, output) is None:
        raise RecipeError(f"key 'output': network {network} computes no variable {output!r}")
    return network, output


def _executor_columns(file: NetworkFile, network: str) -> Dict[str, str]:
    for executor in file.archive.definition.executor:
        if executor.network_name == network:
            return {v.variable_name: v.data_name for v in executor.data_variable}
    return {}


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
    mapping = _Columns(shapes, {**plan.columns, **(recipe.data.inputs or {})})
    feeds = [mapping.feed(name, v, counts.get(name, 0)) for name, v in built.inputs.items()]
    network, output = runtime(file, recipe)
    target = next((f.column for name, f in zip(built.inputs, feeds) if name in counts), "")
    classes = max(counts.values(), default=0)
    if plan.kind == "file":
        loss = reduce(F.add2, [F.mean(built.variables[name]) for name in plan.losses])
        known = _inputs(file.network(network))
        others = [f.column for name, f in zip(built.inputs, feeds) if name not in known]
        target = target or next(iter(others), "")
    else:
        logits = logits_of(built, proto, output)
        if plan.kind == "distillation":
            goal = teacher.build(plan.network, recipe.batch_size, built.inputs, batch_stat=False)
            loss = distillation(
                logits, logits_of(goal, proto, output), recipe.distillation_temperature
            )
            target = LABEL if LABEL in shapes else ""
        else:
            loss, label = named_loss(plan.kind, logits, built.variables[output])
            if plan.kind == "softmax_cross_entropy":
                classes = int(logits.variable.shape[1])
            target = mapping.target(feeds)
            feeds.append(mapping.feed_column(target, label, classes, "the loss"))
    evaluation = _evaluation(program, network, recipe)
    with nn.auto_forward(False):
        evaluation_feeds = [mapping.feed(name, v, 0) for name, v in evaluation.inputs.items()]
    result = evaluation.variables[output]
    return Task(
        plan,
        loss,
        tuple(feeds),
        tuple(evaluation_feeds),
        result,
        _metric(target, shapes, result, plan, proto),
        target,
    )


def input_columns(
    file: NetworkFile, recipe: Recipe, shapes: Mapping[str, Shape]
) -> Dict[str, Tuple[str, Shape]]:
    """For each input of the network that is run: the column that feeds it and a sample's shape."""
    network, _ = runtime(file, recipe)
    columns = _Columns(shapes, {**_executor_columns(file, network), **(recipe.data.inputs or {})})
    proto = file.network(network)
    result = {}
    for v in proto.variable:
        if v.name in _inputs(proto) and v.type == "Buffer":
            shape = tuple(v.shape.dim)
            feed = columns.feed(v.name, nn.Variable((1, *shape[1:])), 0)
            result[v.name] = (feed.column, shape[1:])
    return result


def _inputs(network: Any) -> Set[str]:
    made = {name for function in network.function for name in function.output}
    return {v.name for v in network.variable if v.name not in made}


def _evaluation(program: Program, network: str, recipe: Recipe) -> Built:
    with hard():
        return program.build(network, recipe.batch_size, batch_stat=False)


def _metric(
    target: str, shapes: Mapping[str, Shape], output: Variable, plan: Plan, proto: Any
) -> str:
    if not target or target not in shapes:
        return ""
    values = int(np.prod(output.shape[1:]))
    if int(np.prod(shapes[target])) == 1 and values > 1:
        return "accuracy"
    kinds = {producer(proto, name).type for name in plan.losses}  # type: ignore[union-attr]
    binary = {"BinaryCrossEntropy", "SigmoidCrossEntropy"} & kinds
    if values == 1 and (binary or plan.kind == "sigmoid_cross_entropy"):
        return "accuracy"
    return "mean squared error" if int(np.prod(shapes[target])) == values else ""


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
