"""``nnabla-dqa evaluate``."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Callable

from nnabla_dqa.commands._arguments import add_columns, add_max_bytes, columns_of, options_named
from nnabla_dqa.recipes.parts import DataRecipe
from nnabla_dqa.training.tasks.file_scores import evaluate_file

HELP = "measure any NNP on data: accuracy, or mean squared error"
EXAMPLE = """examples:
  nnabla-dqa evaluate lenet.nnp --data mnist/
  nnabla-dqa evaluate lenet_2bit.nnp --data test.csv --scale 1
"""


def add(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument(
        "input",
        metavar="NNP",
        type=Path,
        help="plain, deployed, or converted (then with its lowest bits)",
    )
    parser.add_argument(
        "--data", required=True, help="a file, or a folder of which the validation part is used"
    )
    add_max_bytes(parser)
    add_columns(parser)
    parser.add_argument("--target", metavar="COLUMN", help="column to compare with (y)")
    parser.add_argument("--output", help="variable to compare (default: the executor's first)")
    parser.add_argument(
        "--limit",
        type=int,
        help="only so many samples: the first, of class folders a random subset",
    )
    parser.add_argument("--batch-size", type=int, default=100, help="samples at a time (100)")


def run(arguments: argparse.Namespace, say: Callable[[str], None]) -> int:
    """Measure."""
    if arguments.batch_size < 1:
        raise ValueError(
            f"--batch-size must be a whole number from 1 on; got {arguments.batch_size}"
        )
    with options_named():
        data = DataRecipe(
            arguments.data,
            scale=arguments.scale,
            limit=arguments.limit,
            inputs=columns_of(arguments),
            target=arguments.target,
        )
        score = evaluate_file(
            arguments.input, data, arguments.batch_size, arguments.output, arguments.max_bytes
        )
    say(f"{arguments.input}: {score.metric} {score.value:.4f} on {score.samples:,} samples")
    return 0
