"""Where a command writes, and what it must not overwrite."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Iterable


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
        OutputError: It is one of the inputs, exists without ``force``, does
            not end in ``.nnp``, or its folder is missing or cannot be written.
    """
    if output.suffix != ".nnp":
        raise OutputError(f"{output}: the output's name must end in .nnp")
    for source in inputs:
        if source.exists() and output.exists() and os.path.samefile(source, output):
            raise OutputError(f"{output}: is the input, which is never overwritten; name another")
    if output.is_dir():
        raise OutputError(f"{output}: is a folder")
    if output.exists() and not force:
        raise OutputError(f"{output}: exists; give --force to overwrite it, or another name")
    if not output.parent.is_dir():
        raise OutputError(f"{output}: there is no folder {output.parent}")
    if not os.access(output.parent, os.W_OK):
        raise OutputError(f"{output}: the folder {output.parent} cannot be written to")
    return output


def beside(source: Path, suffix: str) -> Path:
    """The default output: ``model.nnp`` and ``_dqa`` give ``model_dqa.nnp``."""
    return source.with_name(f"{source.stem}{suffix}.nnp")
