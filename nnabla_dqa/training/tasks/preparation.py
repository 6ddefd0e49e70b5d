"""What is settled between file, recipe and data before the first update."""

from __future__ import annotations

from typing import Dict, List, Optional

from nnabla_dqa._util.files import PathLike
from nnabla_dqa.data import Data, DataError
from nnabla_dqa.export.metadata import DEPLOYED
from nnabla_dqa.mixing import Attention, BinaryRelax
from nnabla_dqa.nnp.file import CONVERTED, FLOAT, NetworkFile
from nnabla_dqa.nnp.live import Program
from nnabla_dqa.nnp_format.members import NNPError
from nnabla_dqa.recipes.recipe import Recipe
from nnabla_dqa.schedules import Schedule
from nnabla_dqa.training.tasks.objective import Task

_UNTRAINABLE = {
    CONVERTED: "all float, nothing in it learns low bits; convert the float file with quantizers",
    DEPLOYED: "a deployed file, quantized for good; convert and train the file it came from",
    FLOAT: "a float file, nothing in it learns low bits; convert it first",
}


def read_trainable(source: PathLike) -> NetworkFile:
    """A converted file with a layer that learns low bits.

    Raises:
        NNPError: It is another.
    """
    file = NetworkFile.read(source)
    if file.kind != CONVERTED or not file.rewritten:
        raise NNPError(f"{source}: is {_UNTRAINABLE[file.kind]}")
    return file


def schedule_of(file: NetworkFile, recipe: Recipe, steps_per_epoch: int) -> Optional[Schedule]:
    """The schedule for the file's mixing rule; None if nothing is mixed.

    Raises:
        NNPError: Some layers are mixed by Binary-Relax and others are not.
    """
    mixed = {k: m.mixing for k, m in file.mixtures.items() if len(m.quantizers) > 1}
    if not mixed:
        return None
    relaxed = [name for name, mixing in mixed.items() if isinstance(mixing, BinaryRelax)]
    if relaxed and len(relaxed) < len(mixed):
        other = next(name for name in mixed if name not in relaxed)
        raise NNPError(
            f"{file.archive.path}: layer {relaxed[0]} is mixed by Binary-Relax, layer {other} is "
            f"not; one training has one schedule: convert with one kind of mixing"
        )
    return recipe.make_schedule(next(iter(mixed.values())), steps_per_epoch)


def fix_parameters(program: Program) -> List[str]:
    """Keep what the file's optimizers do not train; returns what the user should know.

    Raises:
        NNPError: No weights are left to train.
    """
    rates: Dict[str, float] = {}
    for optimizer in program.file.archive.definition.optimizer:
        for listed in optimizer.parameter_variable:
            known = rates.get(listed.variable_name, 0.0)
            rates[listed.variable_name] = max(known, listed.learning_rate_multiplier)
    parameters = program.parameters()
    fixed = [name for name, rate in rates.items() if rate == 0 and name in parameters]
    fixed = [name for name in fixed if parameters[name].need_grad]
    for name in fixed:
        parameters[name].need_grad = False
    messages = []
    if fixed:
        messages.append(f"kept fixed, as in the file's optimizer: {', '.join(fixed)}")
    weights = [layer.weight for layer in program.file.layers if layer.weight not in fixed]
    frozen = [name for name in weights if not parameters[name].need_grad]
    if frozen and len(frozen) == len(weights):
        raise NNPError(
            f"{program.file.archive.path}: all weights are marked as not to be trained "
            f"(need_grad false); nothing can learn low bits"
        )
    if frozen:
        messages.append(f"kept fixed, marked as not to be trained: {', '.join(frozen)}")
    other = [name for name, rate in rates.items() if rate not in (0, 1)]
    if other:
        messages.append(f"learning-rate multipliers of the file count as 1: {', '.join(other)}")
    return messages


def check_validation(task: Task, data: Data, validation: Data, recipe: Recipe) -> None:
    """Raise DataError unless the validation data have what evaluating needs."""
    wanted = [feed.column for feed in task.evaluation_feeds]
    wanted += [task.target] if task.metric else []
    for column in wanted:
        found = validation.shapes.get(column)
        if found != data.shapes[column]:
            what = "no such column" if found is None else f"samples of shape {found}"
            raise DataError(
                f"{recipe.data.validation or recipe.data.train}: validation has {what} for "
                f"{column!r}, training has shape {data.shapes[column]}"
            )


def unused_keys(file: NetworkFile, recipe: Recipe) -> List[str]:
    """A message for what the recipe says in vain."""
    plain = Recipe(recipe.data)
    mixtures = [m for m in file.mixtures.values() if len(m.quantizers) > 1]
    vain = []
    if recipe.loss != "distillation":
        vain += ["teacher", "distillation_temperature"]
    if not any(isinstance(m.mixing, Attention) for m in mixtures):
        vain += ["temperature", "lambda_", "attention_lr"]
    vain = [key for key in vain if getattr(recipe, key) != getattr(plain, key)]
    messages = [f"key {key.rstrip('_')!r} of the recipe has no effect here" for key in vain]
    for name, mixture in file.mixtures.items():
        warning = mixture.mixing.check(mixture.quantizers)
        messages += [f"layer {name}: {warning}"] if warning else []
    return messages
