"""``nnabla-dqa train``: an NNP, or an experiment with a model of this package."""

from __future__ import annotations

import argparse
import dataclasses
import sys
from pathlib import Path
from typing import Callable, List

from nnabla_dqa.commands import train_experiment
from nnabla_dqa.commands._arguments import OutputError, add_output, beside, check_output
from nnabla_dqa.commands._format import epoch_line, tell_stopped
from nnabla_dqa.commands.gpus import refuse_gpu_options
from nnabla_dqa.recipes.recipe import Recipe
from nnabla_dqa.recipes.yaml_files import is_experiment
from nnabla_dqa.training.checkpoint import checkpoint_path
from nnabla_dqa.training.loss_scaler import make_context
from nnabla_dqa.training.result import TrainingStopped
from nnabla_dqa.training.tasks.nnp import train

HELP = "train a converted NNP, or a model of this package, by a recipe"
EXAMPLE = """examples:
  nnabla-dqa train lenet_dqa.nnp --recipe mnist.yaml
  nnabla-dqa train lenet_dqa.nnp --recipe mnist.yaml --resume

mnist.yaml (docs/nnp.md lists all keys):
  data: mnist/
  epochs: 3
  batch_size: 64
  learning_rate: 0.001

With no labels at all, towards the outputs of the float network:
  loss: distillation

Without an NNP, a recipe that names a model (docs/experiments.md) fills a folder:
  nnabla-dqa train --recipe examples/cifar/recipes/cifar10/dqa-minmax.yaml \\
      --data cifar-10-batches-bin -o runs/dqa-0 --seed 0 --set epochs=30
  nnabla-dqa train -o runs/dqa-0 --resume
  mpirun -n 2 nnabla-dqa train --recipe ... -o runs/dqa-1 --context cudnn --type-config half
"""


def add(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument(
        "input", metavar="NNP", type=Path, nargs="?", help="a converted NNP; it is kept"
    )
    parser.add_argument("--recipe", metavar="YAML", type=Path, help="how to train")
    add_output(parser, "<input>_trained.nnp; for an experiment a folder is needed")
    parser.add_argument("--data", metavar="DATA", help="train on this, whatever the recipe says")
    parser.add_argument("--seed", metavar="N", type=int, help="instead of the recipe's")
    parser.add_argument(
        "--resume",
        action="store_true",
        help="go on from the checkpoint beside the output, or in the folder",
    )
    parser.add_argument(
        "--monitor", metavar="FOLDER", type=Path, help="write NNabla's monitor files there"
    )
    parser.add_argument(
        "--context",
        choices=("cpu", "cudnn", "cuda"),
        help="where it is computed (default: cpu; with --resume of an experiment, as before)",
    )
    parser.add_argument("--device", metavar="N", type=int, help="number of the GPU")
    parser.add_argument(
        "--tf32", action="store_true", help="let the GPU compute float32 with 10-bit mantissas"
    )
    train_experiment.add(parser)


def run(arguments: argparse.Namespace, say: Callable[[str], None]) -> int:
    """Train; 1 if it was stopped."""
    if arguments.input is None:
        return train_experiment.run(arguments, say)
    if arguments.recipe is None:
        raise ValueError("--recipe is needed: how to train the NNP")
    if is_experiment(arguments.recipe):
        raise ValueError(
            f"{arguments.recipe}: names a model of this package; leave out {arguments.input}, or "
            f"take a recipe without key 'model'"
        )
    train_experiment.refuse(arguments)
    refuse_gpu_options(arguments.context, arguments.device, arguments.tf32)
    return _train_file(arguments, say)


def _train_file(arguments: argparse.Namespace, say: Callable[[str], None]) -> int:
    source: Path = arguments.input
    recipe = Recipe.from_yaml(arguments.recipe, arguments.data)
    if arguments.seed is not None:
        recipe = dataclasses.replace(recipe, seed=arguments.seed)
    output = check_output(
        arguments.output or beside(source, "_trained"), [source, arguments.recipe], arguments.force
    )
    checkpoint = checkpoint_path(output)
    if checkpoint.exists() and not arguments.resume and not arguments.force:
        raise OutputError(
            f"{checkpoint}: exists; --resume goes on with that training, --force begins anew"
        )
    warned: List[str] = []

    def warn(message: str) -> None:
        warned.append(message)
        sys.stderr.write(f"{message}\n")

    try:
        result = train(
            source,
            recipe,
            output,
            resume=arguments.resume,
            monitor=arguments.monitor,
            on_epoch=lambda epoch: say(epoch_line(epoch, recipe.epochs)),
            progress=True,
            on_message=warn,
            context=make_context(
                arguments.context or "cpu", device=arguments.device or 0, tf32=arguments.tf32
            ),
        )
    except TrainingStopped as stopped:
        return tell_stopped(stopped)
    say(str(result.report))
    for message in result.messages[len(warned) :]:
        warn(message)
    if recipe.update_normalization and result.score is not None:
        say(f"with new statistics: {result.epochs[-1].metric} {result.score:.4f}")
    say(f"{result.path}: written; now: nnabla-dqa deploy {result.path}")
    return 0
