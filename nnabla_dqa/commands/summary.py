"""``nnabla-dqa summary``."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Callable

from nnabla_dqa.commands._arguments import add_max_bytes
from nnabla_dqa.nnp.summary import summarize

HELP = "show the layers of an NNP with their bits, bytes and attention"
EXAMPLE = """examples:
  nnabla-dqa summary lenet.nnp
  nnabla-dqa summary lenet_dqa.nnp --json
"""


def add(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument(
        "input", metavar="NNP", type=Path, help="any NNP: plain, converted, deployed or packed"
    )
    add_max_bytes(parser)
    parser.add_argument("--json", action="store_true", help="as JSON instead of a table")


def run(arguments: argparse.Namespace, say: Callable[[str], None]) -> int:
    """Show the summary."""
    summary = summarize(arguments.input, arguments.max_bytes)
    say(json.dumps(summary.to_json(), indent=1) if arguments.json else str(summary))
    return 0
