"""``nnabla-dqa train``: an NNP or a model of this package, by a recipe."""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path
from typing import Any, Callable, Dict, List, Optional, Tuple

import yaml

from nnabla_dqa.commands._arguments import OutputError, add_max_bytes, beside, check_output
from nnabla_dqa.commands._format import epoch_line, tell_stopped
from nnabla_dqa.commands.gpus import check_own_gpu, refuse_gpu_options
from nnabla_dqa.distributed import open_communicator
from nnabla_dqa.distributed.open import KINDS
from nnabla_dqa.recipes.recipe import Recipe, RecipeError
from nnabla_dqa.recipes.yaml_files import is_nnp
from nnabla_dqa.training.checkpoint import checkpoint_path
from nnabla_dqa.training.loss_scaler import TYPES, make_context
from nnabla_dqa.training.result import Training, TrainingStopped
from nnabla_dqa.training.run import train
from nnabla_dqa.training.run_folder import RunFolder

HELP = "train a converted NNP, or a model of this package, by a recipe"
EXAMPLE = """examples:
  nnabla-dqa train lenet_dqa.nnp --recipe mnist.yaml
  nnabla-dqa train lenet_dqa.nnp --recipe mnist.yaml --resume
  nnabla-dqa train lenet_dqa.nnp --recipe mnist.yaml -o runs/lenet-0

mnist.yaml (docs/experiments.md lists all keys):
  data: mnist/
  epochs: 3
  batch_size: 64
  learning_rate: 0.001

From labels and a float network, or with no labels at all towards the outputs of the float weights:
  teacher: lenet.nnp
  loss: distillation

A recipe may name what it trains (network: lenet.nnp, or model: resnet20_32) and its quantizers:
  nnabla-dqa train --recipe examples/cifar/recipes/cifar10/dqa-minmax.yaml \\
      --data cifar-10-batches-bin -o runs/dqa-0 --seed 0 --set epochs=30
  nnabla-dqa train -o runs/dqa-0 --resume
  mpirun -n 2 nnabla-dqa train --recipe ... -o runs/dqa-1 --context cudnn --type-config half
"""
_OPTIONS = {"name": "--context", "type_config": "--type-config", "tf32": "--tf32"}


def add(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument(
        "input",
        metavar="NNP",
        type=Path,
        nargs="?",
        help="the NNP to train, in place of the recipe's network; it is kept",
    )
    parser.add_argument("--recipe", metavar="YAML", type=Path, help="what to train, and how")
    parser.add_argument(
        "-o",
        "--output",
        metavar="NNP|FOLDER",
        type=Path,
        help="the NNP to write (default: <input>_trained.nnp), or the folder of the run",
    )
    parser.add_argument(
        "--run", metavar="FOLDER", type=Path, help="the folder of the run, besides the NNP"
    )
    parser.add_argument("--force", action="store_true", help="overwrite the NNP if it exists")
    add_max_bytes(parser)
    parser.add_argument(
        "--data",
        metavar="DATA",
        help="training data, in place of the recipe's training and validation data",
    )
    parser.add_argument("--seed", metavar="N", type=int, help="instead of the recipe's")
    parser.add_argument(
        "--budget",
        metavar="SIZE",
        help="what the deployed network may weigh, such as 100kB (1,000 bytes each) or 100KiB "
        "(1,024): attention chooses the bits of each layer",
    )
    parser.add_argument(
        "--set",
        metavar="KEY=VALUE",
        action="append",
        default=[],
        dest="changes",
        help="instead of the recipe's, such as epochs=30 or model.width=0.25; can be repeated",
    )
    parser.add_argument(
        "--resume",
        action="store_true",
        help="go on from the checkpoint in the folder of the run, or beside the NNP",
    )
    parser.add_argument(
        "--monitor",
        metavar="FOLDER",
        type=Path,
        help="write NNabla's monitor files there (default: in the folder of the run)",
    )
    parser.add_argument(
        "--tensorboard",
        action="store_true",
        help="write TensorBoard event files beside them (needs the extra [monitor])",
    )
    parser.add_argument(
        "--save-every", metavar="MINUTES", type=float, default=10.0, help="a checkpoint (10)"
    )
    parser.add_argument(
        "--context",
        choices=("cpu", "cudnn", "cuda"),
        help="where it is computed (default: cpu; when a run is resumed, as before)",
    )
    parser.add_argument("--device", metavar="N", type=int, help="number of the GPU")
    parser.add_argument(
        "--type-config",
        choices=TYPES,
        help="half: mixed precision on a GPU (default: float; when a run is resumed, as before)",
    )
    parser.add_argument(
        "--tf32", action="store_true", help="let the GPU compute float32 with 10-bit mantissas"
    )
    parser.add_argument(
        "--parallel", choices=KINDS, default="auto", help="how processes communicate"
    )


def run(arguments: argparse.Namespace, say: Callable[[str], None]) -> int:
    """Train; 1 if it was stopped."""
    if not arguments.save_every >= 0:
        raise ValueError(f"--save-every must be minutes, 0 or more; got {arguments.save_every:g}")
    computing = _computing(arguments)
    refuse_gpu_options(computing["name"], arguments.device, arguments.tf32)
    wanted = make_context(**computing, device=arguments.device or 0, check=False)
    # First of all: an error in one process then ends all of them.
    with open_communicator(wanted, arguments.parallel) as communicator:
        recipe = _recipe(arguments)
        target, folder = _outputs(arguments, recipe)
        if arguments.tensorboard and folder is None and arguments.monitor is None:
            raise ValueError(
                "--tensorboard: name the folder of a run (-o or --run FOLDER), or --monitor FOLDER"
            )
        device = communicator.local_rank if arguments.device is None else arguments.device
        context = make_context(**computing, device=device)
        check_own_gpu(communicator, context)
        first = communicator.rank == 0

        def warn(message: str) -> None:
            shown.append(message)
            sys.stderr.write(f"{message}\n")

        shown: List[str] = []
        try:
            result = train(
                recipe,
                target=target,
                folder=folder,
                resume=arguments.resume,
                monitor=arguments.monitor,
                on_epoch=lambda epoch: say(epoch_line(epoch, recipe.epochs)),
                progress=True,
                on_message=warn,
                context=context,
                save_seconds=60 * arguments.save_every,
                communicator=communicator,
                max_bytes=arguments.max_bytes,
                tensorboard=arguments.tensorboard,
            )
        except RecipeError as error:
            if arguments.recipe is None or str(error).startswith(str(arguments.recipe)):
                raise
            raise RecipeError(f"{arguments.recipe}: {error}") from None
        except TrainingStopped as stopped:
            if not stopped.together:
                # The others do not know of it, and closing would wait for them.
                raise SystemExit(tell_stopped(stopped)) from None
            hint = f"nnabla-dqa train -o {folder} --resume" if target is None else None
            if hint is not None and communicator.size > 1:
                hint = f"mpiexec -n {communicator.size} {hint}"
            return tell_stopped(stopped, hint) if first else 1
        if first:
            for message in result.messages[len(shown) :]:
                warn(message)
            _tell_result(result, say)
    return 0


def _tell_result(result: Training, say: Callable[[str], None]) -> None:
    if result.report is not None:
        say(str(result.report))
    last = result.epochs[-1]
    if result.has_new_statistics and result.score is not None:
        say(f"with new statistics: {last.metric} {result.score:.4f}")
    if result.deployed is None:
        say(f"{result.path}: written; now: nnabla-dqa deploy {result.path}")
    elif result.deployed_score is None:
        say(f"{result.deployed}: written")
    else:
        say(f"{result.deployed}: {last.metric} {result.deployed_score:.4f}")


def _recipe(arguments: argparse.Namespace) -> Recipe:
    """The recipe, from its file or, to resume a run, from the folder."""
    changes = changes_of(arguments)
    if arguments.recipe is not None:
        return Recipe.from_yaml(arguments.recipe, changes)
    folder = _folder(arguments)
    if not arguments.resume or folder is None:
        what = "what to train, and how" if arguments.input is None else "how to train the NNP"
        raise ValueError(f"--recipe is needed: {what} (or -o FOLDER --resume to go on with a run)")
    kept = RunFolder(folder)
    kept.read_recipe()
    return Recipe.from_yaml(kept.recipe, changes)


def _folder(arguments: argparse.Namespace) -> Optional[Path]:
    """The folder of the run, if one is named."""
    folder: Optional[Path] = None if is_nnp(arguments.output) else arguments.output
    return arguments.run or folder


def _outputs(
    arguments: argparse.Namespace, recipe: Recipe
) -> Tuple[Optional[Path], Optional[Path]]:
    """The NNP to write and the folder of the run."""
    output, folder = arguments.output, arguments.run
    if output is not None and not is_nnp(output):
        if folder is not None:
            raise ValueError(f"-o {output} and --run {folder}: one folder is enough")
        if not output.exists() and re.fullmatch(r"\.[A-Za-z]\w*", output.suffix):
            raise OutputError(
                f"-o {output}: is no .nnp file; for a folder of this name, make it first"
            )
        if arguments.force:
            raise ValueError(f"--force: remove the folder {output} yourself, if you mean it")
        return None, output
    if output is None and recipe.network is None:
        if folder is None:
            raise ValueError("-o FOLDER is needed: where the run is kept (or name an NNP to train)")
        return None, folder
    output = output or beside(arguments.input or Path(str(recipe.network)), "_trained")
    inputs = [Path(path) for path in (recipe.network, arguments.recipe) if path is not None]
    if folder is None and arguments.resume and output.exists() and not arguments.force:
        raise OutputError(f"{output}: the training has ended; --force writes it again")
    checkpoint = checkpoint_path(check_output(output, inputs, arguments.force))
    if folder is None and checkpoint.exists() and not arguments.resume and not arguments.force:
        raise OutputError(
            f"{checkpoint}: exists; --resume goes on with that training, --force begins anew"
        )
    return output, folder


def _computing(arguments: argparse.Namespace) -> Dict[str, Any]:
    """Context, precision and TF32: those asked for; for a resumed run, those of its last start."""
    folder = _folder(arguments)
    asked = {
        "name": arguments.context,
        "type_config": arguments.type_config,
        "tf32": arguments.tf32 or None,
    }
    chosen = {"name": "cpu", "type_config": "float", "tf32": False}
    if arguments.resume and folder is not None:
        starts = RunFolder(folder).starts()
        before = starts[-1].get("computing", {}) if starts else {}
        chosen.update({key: before[key] for key in chosen if key in before})
        for key, value in asked.items():
            if value is not None and value != chosen[key]:
                sys.stderr.write(f"{_OPTIONS[key]} is {value}; before, it was {chosen[key]}\n")
    chosen.update({key: value for key, value in asked.items() if value is not None})
    return chosen


def changes_of(arguments: argparse.Namespace) -> Dict[str, Any]:
    """What the command line puts in place of a recipe's keys."""
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
    if arguments.budget is not None:
        _place(changes, "budget", arguments.budget)
    if arguments.data is not None:
        _place(changes, "data.train", arguments.data)
        changes["data"].setdefault("validation", None)
    if arguments.input is not None:
        changes["network"] = str(arguments.input)
    return changes


def _place(changes: Dict[str, Any], key: str, value: Any) -> None:
    *above, last = key.split(".")
    for name in above:
        changes = changes.setdefault(name, {})
        if not isinstance(changes, dict):
            raise ValueError(f"--set {key}: {name} is set to a value already")
    changes[last] = value
