"""Which networks of an NNP a recipe trains and runs, and with which loss."""

from __future__ import annotations

from typing import Any, Dict, Mapping, NamedTuple, Optional, Tuple

from nnabla_dqa.nnp.file import NetworkFile
from nnabla_dqa.nnp.inspect import own_losses, predictions, producer, running_networks
from nnabla_dqa.nnp_format.members import NNPError
from nnabla_dqa.recipes.checks import RecipeError
from nnabla_dqa.recipes.parts import DataRecipe
from nnabla_dqa.recipes.recipe import LOSSES, Recipe
from nnabla_dqa.training.tasks.inputs import Columns, Shape


class Run(NamedTuple):
    """What is run after training: a network, its output, and all outputs of its executor.

    ``columns`` says which column of the data feeds which input, as far as the
    file tells.
    """

    network: str
    output: str
    outputs: Tuple[str, ...]
    columns: Dict[str, str]


class Plan(NamedTuple):
    """What is trained: a network, the loss variables it has itself or ``kind`` of loss to add."""

    network: str
    kind: str
    losses: Tuple[str, ...]
    columns: Dict[str, str]
    run: Run


def resolve(file: NetworkFile, recipe: Recipe) -> Plan:
    """Which networks and which loss a recipe means for a file.

    Raises:
        RecipeError: The file has no loss of its own and the recipe names none,
            or a network or output that is not there.
    """
    if recipe.train_network is not None:
        try:
            file.network(recipe.train_network)
        except NNPError as error:
            raise RecipeError(f"key 'train_network': {error}") from None
    if recipe.loss not in (None, "file"):
        run = find_run(file, recipe.train_network, recipe.output)
        return Plan(run.network, str(recipe.loss), (), run.columns, run)
    run = find_run(file, output=recipe.output)
    return _own_plan(file, recipe.train_network, run)


def _own_plan(file: NetworkFile, chosen: Optional[str], run: Run) -> Plan:
    definition = file.archive.definition
    for optimizer in definition.optimizer:
        losses = tuple(v.variable_name for v in optimizer.loss_variable)
        if losses and chosen in (None, optimizer.network_name):
            network = file.network(optimizer.network_name)
            for name in losses:
                if producer(network, name) is None:
                    raise RecipeError(
                        f"{file.archive.path}: optimizer {optimizer.name} names the loss {name!r}, "
                        f"which network {network.name} does not compute; name one: key 'loss'"
                    )
            columns = {v.variable_name: v.data_name for v in optimizer.data_variable}
            return Plan(optimizer.network_name, "file", losses, columns, run)
    for network in definition.network:
        if chosen in (None, network.name) and own_losses(network):
            return Plan(network.name, "file", tuple(own_losses(network)), {}, run)
    raise RecipeError(
        f"key 'loss': {file.archive.path} has no training network with a loss; name one of "
        f"{', '.join(kind for kind in LOSSES if kind != 'file')}"
    )


def find_run(file: NetworkFile, chosen: Optional[str] = None, output: Optional[str] = None) -> Run:
    """What a file runs: the first executor's network; without one, the first without a loss.

    Args:
        file: Any NNP.
        chosen: The network, in place of the first executor's.
        output: In place of its executor's first.

    Raises:
        RecipeError: The network computes no such output.
    """
    definition = file.archive.definition
    network, shown, columns = chosen or "", (), {}  # type: str, Tuple[str, ...], Dict[str, str]
    for executor in definition.executor:
        if executor.output_variable and chosen in (None, executor.network_name):
            network = executor.network_name
            shown = tuple(v.variable_name for v in executor.output_variable)
            break
    network = network or [*running_networks(definition), definition.network[0].name][0]
    for executor in definition.executor:
        if executor.network_name == network:
            columns = {v.variable_name: v.data_name for v in executor.data_variable}
            break
    proto = file.network(network)
    losses = own_losses(proto)
    first = output or next((name for name in shown if name not in losses), "")
    first = first or _default_output(proto)
    if producer(proto, first) is None:
        made = [name for function in proto.function for name in function.output]
        raise RecipeError(
            f"key 'output': network {network} computes no variable {first!r}; it computes "
            f"{', '.join(made)}"
        )
    return Run(network, first, shown if shown and output is None else (first,), columns)


def _default_output(network: Any) -> str:
    """What nothing uses and is no loss; else what the loss is taken on."""
    used = {name for function in network.function for name in function.input}
    made = [name for function in network.function for name in function.output]
    losses = own_losses(network)
    outputs = [name for name in made if name not in used and name not in losses]
    return str([*outputs, *predictions(network), *made][0])


def columns_of(
    file: NetworkFile, data: DataRecipe, shapes: Mapping[str, Shape], columns: Mapping[str, str]
) -> Columns:
    """The columns for a network of ``file``; ``columns`` is what its executor or optimizer says."""
    definition = file.archive.definition
    variables = {v.name for network in definition.network for v in network.variable}
    known = {
        v.variable_name: v.data_name
        for optimizer in definition.optimizer
        for v in optimizer.data_variable
    }
    return Columns(shapes, data, variables, {**known, **columns})


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
