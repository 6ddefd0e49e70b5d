"""``nnabla-dqa report``."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Callable

from nnabla_dqa.commands._arguments import add_max_bytes, check_free
from nnabla_dqa.reporting.page.write import check_report_target, write_report

HELP = "write a page about runs or NNPs: attention, scores, bits and bytes, weights on their levels"
EXAMPLE = """examples:
  nnabla-dqa report runs/dqa-0 -o report.html
  nnabla-dqa report runs/dqa-0 runs/dqa-1 runs/plain-0 -o compared.html
  nnabla-dqa report lenet_2bit.nnp -o lenet.html

The page is one HTML file: it loads nothing, and no script runs in it. Its pictures need
matplotlib: pip install 'nnabla_dqa[report]'
"""


def add(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument(
        "inputs",
        metavar="RUN_OR_NNP",
        type=Path,
        nargs="+",
        help="the folder of a run, a folder with runs below it, or any NNP",
    )
    parser.add_argument(
        "-o",
        "--output",
        metavar="HTML",
        type=Path,
        default=Path("report.html"),
        help="file to write (default: report.html)",
    )
    parser.add_argument("--force", action="store_true", help="overwrite the output if it exists")
    add_max_bytes(parser)


def run(arguments: argparse.Namespace, say: Callable[[str], None]) -> int:
    """Write the page."""
    output: Path = arguments.output
    check_free(check_report_target(output, arguments.inputs), arguments.force)
    path = write_report(arguments.inputs, output, arguments.max_bytes)
    say(f"{path}: {path.stat().st_size:,} bytes")
    return 0
