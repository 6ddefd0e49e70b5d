"""Where a command writes, and what it must not overwrite."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Iterable

from nnabla_dqa.graph.archive import check_output as check_nnp_output


class OutputError(ValueError):
    """An output cannot be written there."""


def add_output(parser: argparse.ArgumentParser, default: str) -> None:
    """Declare ``-o`` and ``--force``."""
    parser.add_argument(
        "-o", "--output", metavar="NNP", type=Path, help=f"file to write (default: {default})"
    )
    parser.add_argument("--force", action="store_true", help="overwrite the output if it exists")


def check_output(output: Path, inputs: Iterable[Path], force: bool) -> Path:
    """``output`` if it may be written.

    Raises:
        OutputError: It exists, and ``force`` is not given.
        NNPError, OSError: As of :func:`nnabla_dqa.graph.archive.check_output`.
    """
    check_nnp_output(output, inputs)
    if output.exists() and not force:
        raise OutputError(f"{output}: exists; give --force to overwrite it, or another name")
    return output


def beside(source: Path, suffix: str) -> Path:
    """The default output: ``model.nnp`` and ``_dqa`` give ``model_dqa.nnp``."""
    return source.with_name(f"{source.stem}{suffix}.nnp")
