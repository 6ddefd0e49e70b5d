"""``nnabla-dqa table``."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Callable

from nnabla_dqa.reporting.run_table import run_table

HELP = "show the accuracy of experiments beside that of the paper, mean and sd over seeds"
EXAMPLE = """examples:
  nnabla-dqa table runs
  nnabla-dqa table runs/dqa-0 runs/dqa-1 --markdown

RUNS are what `nnabla-dqa train -o FOLDER` left, or folders that contain such. Accuracies are those
of the deployed networks. A run that is not finished is named below the table.
"""


def add(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("runs", metavar="RUNS", type=Path, nargs="+", help="folders")
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--markdown", action="store_true", help="the table in Markdown")
    form.add_argument("--json", action="store_true", help="as JSON instead of a table")


def run(arguments: argparse.Namespace, say: Callable[[str], None]) -> int:
    """Show the table."""
    table = run_table(arguments.runs)
    if arguments.json:
        say(json.dumps(table.to_json(), indent=1))
    else:
        say(table.markdown() if arguments.markdown else str(table))
    return 0
