"""Arguments that commands share: outputs, which overwrite nothing, and columns of data."""

from __future__ import annotations

import argparse
import contextlib
import re
from pathlib import Path
from typing import Dict, Iterable, Iterator

from nnabla_dqa.nnp_format.members import check_output as check_nnp_output
from nnabla_dqa.recipes.checks import RecipeError


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
        NNPError, OSError: As of :func:`nnabla_dqa.nnp_format.members.check_output`.
    """
    check_nnp_output(output, inputs)
    return check_free(output, force)


def check_free(output: Path, force: bool) -> Path:
    """``output`` if nothing is there, or ``force`` is given; raises OutputError."""
    if output.exists() and not force:
        raise OutputError(f"{output}: exists; give --force to overwrite it, or another name")
    return output


def add_max_bytes(parser: argparse.ArgumentParser) -> None:
    """Declare ``--max-bytes`` for a command that reads an NNP."""
    parser.add_argument(
        "--max-bytes",
        metavar="N",
        type=int,
        help="what the NNP may unpack to (default: 256 MiB, or 200 times its size up to 4 GiB)",
    )


def beside(source: Path, suffix: str) -> Path:
    """The default output: ``model.nnp`` and ``_dqa`` give ``model_dqa.nnp``."""
    if not source.name:
        raise ValueError(f"{source}: is a folder, not an .nnp file")
    return source.with_name(f"{source.stem}{suffix}.nnp")


def add_columns(parser: argparse.ArgumentParser) -> None:
    """Declare ``--input`` and ``--scale`` for a command that reads data."""
    parser.add_argument(
        "--input",
        metavar="INPUT=COLUMN",
        action="append",
        default=[],
        dest="inputs",
        help="which column of the data feeds an input of the network; can be repeated",
    )
    parser.add_argument("--scale", type=float, help="what pixels are multiplied by (1/255)")


@contextlib.contextmanager
def options_named() -> Iterator[None]:
    """Errors about keys of ``data`` name the options that stand for them."""
    try:
        yield
    except RecipeError as error:
        named = {"limit": "--limit", "scale": "--scale", "inputs": "--input", "target": "--target"}
        text = re.sub(r"key 'data\.(\w+)'", lambda m: named.get(m[1], m[0]), str(error))
        raise RecipeError(text.replace("key 'output'", "--output")) from None


def columns_of(arguments: argparse.Namespace) -> Dict[str, str]:
    """What ``--input`` says."""
    columns = {}
    for text in arguments.inputs:
        name, equals, column = text.rpartition("=")
        if not equals:
            raise ValueError(f"--input {text!r} is not INPUT=COLUMN, such as Input=image")
        columns[name] = column
    return columns
