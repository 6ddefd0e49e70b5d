"""``nnabla-dqa check``."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Callable

from nnabla_dqa.commands._arguments import add_max_bytes
from nnabla_dqa.nnp.check import check_file

HELP = "prove that a deployed NNP's weights lie on the levels it states"
EXAMPLE = """example:
  nnabla-dqa check lenet_2bit.nnp

exit code: 0 if all is as the file says, 1 if not, 2 if the file cannot be read
"""


def add(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("input", metavar="NNP", type=Path, help="a deployed NNP")
    add_max_bytes(parser)


def run(arguments: argparse.Namespace, say: Callable[[str], None]) -> int:
    """Check; 1 if something is not as the file says."""
    result = check_file(arguments.input, arguments.max_bytes)
    say(str(result))
    return 0 if result.ok else 1
