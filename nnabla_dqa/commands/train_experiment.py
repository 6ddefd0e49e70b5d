"""``nnabla-dqa train`` without an NNP: an experiment that fills a folder."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any, Callable, Dict

import yaml

from nnabla_dqa.commands._format import epoch_line, tell_stopped
from nnabla_dqa.commands.gpus import check_own_gpu, refuse_gpu_options
from nnabla_dqa.distributed import Communicator, detect_launch, open_communicator
from nnabla_dqa.distributed.open import KINDS
from nnabla_dqa.recipes.experiment import Experiment
from nnabla_dqa.recipes.yaml_files import is_experiment
from nnabla_dqa.training.loss_scaler import TYPES, make_context
from nnabla_dqa.training.result import TrainingStopped
from nnabla_dqa.training.run import ExperimentResult, run_experiment
from nnabla_dqa.training.run_folder import RunFolder

SAVE_MINUTES = 10.0
_OPTIONS = {"name": "--context", "type_config": "--type-config", "tf32": "--tf32"}


def add(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments that only experiments have."""
    group = parser.add_argument_group("experiments")
    group.add_argument(
        "--set",
        metavar="KEY=VALUE",
        action="append",
        default=[],
        dest="changes",
        help="instead of the recipe's, such as epochs=30 or model.width=0.25; can be repeated",
    )
    group.add_argument(
        "--type-config",
        choices=TYPES,
        help="half: mixed precision on a GPU (default: float; with --resume, as before)",
    )
    group.add_argument(
        "--parallel", choices=KINDS, default="auto", help="how processes communicate"
    )
    group.add_argument(
        "--save-every", metavar="MINUTES", type=float, default=SAVE_MINUTES, help="a checkpoint"
    )


def refuse(arguments: argparse.Namespace) -> None:
    """Raise ValueError if an argument for experiments was given for an NNP."""
    vain = {
        "--set": arguments.changes,
        "--type-config": arguments.type_config is not None,
        "--parallel": arguments.parallel != "auto",
        "--save-every": arguments.save_every != SAVE_MINUTES,
    }
    for name, given in vain.items():
        if given:
            raise ValueError(f"{name} is for experiments, whose recipe names a model")
    launch = detect_launch()
    if launch is not None and launch.size != 1:
        raise ValueError(
            f"{launch.launcher} started {launch.processes} processes; an NNP is trained by one"
        )


def run(arguments: argparse.Namespace, say: Callable[[str], None]) -> int:
    """Train; 1 if it was stopped."""
    if arguments.output is None:
        raise ValueError("-o FOLDER is needed: where the run is kept (or name an NNP to train)")
    if arguments.force:
        raise ValueError(f"--force: remove the folder {arguments.output} yourself, if you mean it")
    if arguments.monitor is not None:
        raise ValueError(f"--monitor: the curves are in {arguments.output / 'monitors'}")
    if not arguments.save_every >= 0:
        raise ValueError(f"--save-every must be minutes, 0 or more; got {arguments.save_every:g}")
    experiment = _experiment(arguments)
    computing = _computing(arguments)
    refuse_gpu_options(computing["name"], arguments.device, arguments.tf32)
    wanted = make_context(**computing, device=arguments.device or 0, check=False)
    with open_communicator(wanted, arguments.parallel) as communicator:
        device = communicator.local_rank if arguments.device is None else arguments.device
        context = make_context(**computing, device=device)
        check_own_gpu(communicator, context)
        first = communicator.rank == 0

        def tell(text: str) -> None:
            if first:
                say(text)

        try:
            result = run_experiment(
                experiment,
                arguments.output,
                resume=arguments.resume,
                context=context,
                communicator=communicator,
                on_epoch=lambda epoch: tell(epoch_line(epoch, experiment.epochs)),
                progress=True,
                save_seconds=60 * arguments.save_every,
            )
        except TrainingStopped as stopped:
            if not stopped.together:
                # The others do not know of it, and closing would wait for them.
                raise SystemExit(tell_stopped(stopped)) from None
            hint = f"nnabla-dqa train -o {arguments.output} --resume"
            return tell_stopped(stopped, hint) if first else 1
        _tell_result(result, tell, communicator)
    return 0


def _computing(arguments: argparse.Namespace) -> Dict[str, Any]:
    """Context, precision and TF32: those asked for; with ``--resume``, those of the last start."""
    asked = {
        "name": arguments.context,
        "type_config": arguments.type_config,
        "tf32": arguments.tf32 or None,
    }
    chosen = {"name": "cpu", "type_config": "float", "tf32": False}
    if arguments.resume:
        starts = RunFolder(arguments.output).starts()
        before = starts[-1].get("computing", {}) if starts else {}
        chosen.update({key: before[key] for key in chosen if key in before})
        for key, value in asked.items():
            if value is not None and value != chosen[key]:
                sys.stderr.write(f"{_OPTIONS[key]} is {value}; before, it was {chosen[key]}\n")
    chosen.update({key: value for key, value in asked.items() if value is not None})
    return chosen


def _tell_result(
    result: ExperimentResult, tell: Callable[[str], None], communicator: Communicator
) -> None:
    if result.report is not None:
        tell(str(result.report))
    if communicator.rank == 0:
        for message in result.messages:
            sys.stderr.write(f"{message}\n")
    tell(f"{result.path}: accuracy {result.accuracy:.4f}")


def _experiment(arguments: argparse.Namespace) -> Experiment:
    """The recipe, from its file or, to resume, from the folder."""
    changes = changes_of(arguments)
    if arguments.resume:
        if changes or arguments.recipe is not None:
            raise ValueError(
                "--resume takes the recipe from the folder; leave out --recipe, --set, --seed and "
                "--data"
            )
        return RunFolder(arguments.output).experiment()
    if arguments.recipe is None:
        raise ValueError("--recipe is needed: what to train (or --resume to go on with a run)")
    if not is_experiment(arguments.recipe):
        raise ValueError(
            f"{arguments.recipe}: names no model (key 'model'); to train an NNP, name the file"
        )
    return Experiment.from_yaml(arguments.recipe, changes)


def changes_of(arguments: argparse.Namespace) -> Dict[str, Any]:
    """What ``--set``, ``--seed`` and ``--data`` put in place of a recipe's keys."""
    changes: Dict[str, Any] = {}
    for text in arguments.changes:
        key, equals, value = text.partition("=")
        if not equals or not key:
            raise ValueError(f"--set {text!r} is not KEY=VALUE, such as epochs=30")
        try:
            _place(changes, key, yaml.safe_load(value))
        except yaml.YAMLError:
            raise ValueError(f"--set {text!r}: {value!r} is no YAML value") from None
    if arguments.seed is not None:
        _place(changes, "seed", arguments.seed)
    if arguments.data is not None:
        _place(changes, "data.source", str(Path(arguments.data).absolute()))
    return changes


def _place(changes: Dict[str, Any], key: str, value: Any) -> None:
    *above, last = key.split(".")
    for name in above:
        changes = changes.setdefault(name, {})
        if not isinstance(changes, dict):
            raise ValueError(f"--set {key}: {name} is set to a value already")
    changes[last] = value
