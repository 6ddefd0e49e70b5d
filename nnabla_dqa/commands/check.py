"""``nnabla-dqa check``."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Callable

from nnabla_dqa.commands._arguments import add_columns, add_max_bytes, columns_of, options_named
from nnabla_dqa.nnp.check import check_file
from nnabla_dqa.recipes.parts import DataRecipe
from nnabla_dqa.training.tasks.file_scores import check_on_data

HELP = "prove that a deployed NNP's weights, and with data its activations, lie on their levels"
EXAMPLE = """example:
  nnabla-dqa check lenet_2bit.nnp
  nnabla-dqa check lenet_2bit.nnp --data mnist/

exit code: 0 if all is as the file says, 1 if not, 2 if the file cannot be read
"""


def add(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("input", metavar="NNP", type=Path, help="a deployed NNP")
    add_max_bytes(parser)
    parser.add_argument(
        "--data",
        help="run the file on some samples and prove the levels of its quantized activations: "
        "a file, or a folder of which the validation part is used",
    )
    add_columns(parser)


def run(arguments: argparse.Namespace, say: Callable[[str], None]) -> int:
    """Check; 1 if something is not as the file says."""
    if arguments.data is None and (arguments.scale is not None or arguments.inputs):
        raise ValueError("--scale and --input say something about --data only")
    result = check_file(arguments.input, arguments.max_bytes)
    say(str(result))
    if arguments.data is None or not result.ok:
        return 0 if result.ok else 1
    with options_named():
        data = DataRecipe(arguments.data, scale=arguments.scale, inputs=columns_of(arguments))
        found = check_on_data(arguments.input, data, max_bytes=arguments.max_bytes)
    say(str(found))
    return 0 if found.ok else 1
