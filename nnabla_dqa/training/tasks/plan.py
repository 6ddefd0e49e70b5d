"""What a recipe means for a file: which network is trained and run, with which loss."""

from __future__ import annotations

from typing import Any, Dict, List, NamedTuple, Optional, Tuple

from nnabla_dqa.nnp.file import NetworkFile
from nnabla_dqa.nnp.inspect import own_losses, predictions, producer, running_networks
from nnabla_dqa.recipes.recipe import LOSSES, Recipe, RecipeError


class Plan(NamedTuple):
    """What is trained: a network, the loss variables it has itself or ``kind`` of loss to add.

    ``columns`` says which column of the data feeds which input, as far as the
    file tells.
    """

    network: str
    kind: str
    losses: Tuple[str, ...]
    columns: Dict[str, str]


def make_plan(file: NetworkFile, recipe: Recipe) -> Plan:
    """Which network and which loss a recipe means for a file.

    Raises:
        RecipeError: The file has no loss of its own and the recipe names none,
            or a network or output that is not there.
    """
    if recipe.network is not None:
        file.network(recipe.network)
    if recipe.loss in (None, "file"):
        own = _own_plan(file, recipe)
        if own is not None:
            return own
        raise RecipeError(
            f"key 'loss': {file.archive.path} has no training network with a loss; name one of "
            f"{', '.join(kind for kind in LOSSES if kind != 'file')}"
        )
    network, _ = runtime(file, recipe)
    return Plan(network, str(recipe.loss), (), executor_columns(file, network))


def _own_plan(file: NetworkFile, recipe: Recipe) -> Optional[Plan]:
    for optimizer in file.archive.definition.optimizer:
        losses = tuple(v.variable_name for v in optimizer.loss_variable)
        if losses and recipe.network in (None, optimizer.network_name):
            network = file.network(optimizer.network_name)
            for name in losses:
                if producer(network, name) is None:
                    raise RecipeError(
                        f"{file.archive.path}: optimizer {optimizer.name} names the loss {name!r}, "
                        f"which network {network.name} does not compute; name one: key 'loss'"
                    )
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
        shown = [v.variable_name for v in executors[0].output_variable]
        losses = own_losses(file.network(network))
        output = output or next((name for name in shown if name not in losses), "")
    elif not network:
        network = [*running_networks(definition), definition.network[0].name][0]
    proto = file.network(network)
    output = output or _default_output(proto)
    if producer(proto, output) is None:
        made = [name for function in proto.function for name in function.output]
        raise RecipeError(
            f"key 'output': network {network} computes no variable {output!r}; it computes "
            f"{', '.join(made)}"
        )
    return network, output


def _default_output(network: Any) -> str:
    """What nothing uses and is no loss; else what the loss is taken on."""
    used = {name for function in network.function for name in function.input}
    made = [name for function in network.function for name in function.output]
    losses = own_losses(network)
    outputs = [name for name in made if name not in used and name not in losses]
    return str([*outputs, *predictions(network), *made][0])


def outputs_of(file: NetworkFile, recipe: Recipe, network: str, output: str) -> List[str]:
    """The outputs of ``network`` that distillation compares: all of its executor's."""
    for executor in file.archive.definition.executor:
        if executor.network_name == network and recipe.output is None:
            return [v.variable_name for v in executor.output_variable] or [output]
    return [output]


def executor_columns(file: NetworkFile, network: str) -> Dict[str, str]:
    """Which column feeds which input of ``network``, as far as its executor tells."""
    for executor in file.archive.definition.executor:
        if executor.network_name == network:
            return {v.variable_name: v.data_name for v in executor.data_variable}
    return {}
