"""``nnabla-dqa train``."""

from __future__ import annotations

import argparse
import dataclasses
import sys
from pathlib import Path
from typing import Callable, List

from nnabla_dqa.commands.output import OutputError, add_output, beside, check_output
from nnabla_dqa.training.checkpoint import checkpoint_path
from nnabla_dqa.training.file_training import train
from nnabla_dqa.training.outcome import Epoch, TrainingStopped
from nnabla_dqa.training.recipe import Recipe

HELP = "train a converted NNP by a recipe"
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
"""


def add(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("input", metavar="NNP", type=Path, help="a converted NNP; it is kept")
    parser.add_argument("--recipe", metavar="YAML", type=Path, required=True, help="how to train")
    add_output(parser, "<input>_trained.nnp")
    parser.add_argument("--data", metavar="DATA", help="train on this, whatever the recipe says")
    parser.add_argument("--seed", metavar="N", type=int, help="instead of the recipe's")
    parser.add_argument(
        "--resume",
        action="store_true",
        help="go on from <output>.checkpoint, which every epoch writes",
    )
    parser.add_argument(
        "--monitor", metavar="FOLDER", type=Path, help="write NNabla's monitor files there"
    )


def run(arguments: argparse.Namespace, say: Callable[[str], None]) -> int:
    """Train; 1 if it was stopped."""
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

    def tell(epoch: Epoch) -> None:
        score = "" if epoch.score is None else f", {epoch.metric} {epoch.score:.4f}"
        end = ", lowest bits alone" if epoch.hard else ""
        say(
            f"epoch {epoch.epoch}/{recipe.epochs}: loss {epoch.loss:.4f}{score}{end} "
            f"({epoch.seconds:.0f} s)"
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
            on_epoch=tell,
            progress=True,
            on_message=warn,
        )
    except TrainingStopped as stopped:
        hint = "; the same command with --resume goes on" if stopped.checkpoint else ""
        sys.stderr.write(f"nnabla-dqa: {stopped}{hint}\n")
        return 1
    say(str(result.report))
    for message in result.messages[len(warned) :]:
        warn(message)
    if recipe.update_normalization and result.score is not None:
        say(f"with new statistics: {result.epochs[-1].metric} {result.score:.4f}")
    say(f"{result.path}: written; now: nnabla-dqa deploy {result.path}")
    return 0
