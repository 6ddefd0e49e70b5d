"""``nnabla-dqa export``."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Callable

from nnabla_dqa.commands._arguments import (
    add_columns,
    add_max_bytes,
    check_free,
    columns_of,
    options_named,
)
from nnabla_dqa.export.files import check_export_output, export_file
from nnabla_dqa.export.onnx.write import ARITHMETIC, AUTO
from nnabla_dqa.recipes.parts import DataRecipe
from nnabla_dqa.training.tasks.exported import Comparison

HELP = "write a deployed NNP with packed weights: ONNX, a smaller NNP, or NNB"
EXAMPLE = """examples:
  nnabla-dqa export lenet_2bit.nnp -o lenet_2bit.onnx
  nnabla-dqa export lenet_2bit.nnp -o lenet_2bit.onnx --verify mnist/
  nnabla-dqa export lenet_1bit.nnp -o lenet_1bit.nnb          (for NNabla's C runtime)
  nnabla-dqa export lenet_2bit.nnp -o lenet_small.nnp         (any NNabla, fewer bytes)

exit code: 0 if it was written (and gives what the NNP gives), 1 if it gives something else
"""


def add(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("input", metavar="NNP", type=Path, help="a deployed NNP")
    parser.add_argument(
        "-o",
        "--output",
        metavar="OUT",
        type=Path,
        help="file to write; its ending says which format (default: <input>.onnx)",
    )
    parser.add_argument("--force", action="store_true", help="overwrite the output if it exists")
    parser.add_argument("--network", help="which network (default: that of the first executor)")
    parser.add_argument(
        "--arithmetic",
        choices=ARITHMETIC,
        default=AUTO,
        help="how layers with quantized activations are computed: on integers, exactly (what auto "
        "takes), in QuantizeLinear/DequantizeLinear pairs (faster, not exact), or in float32",
    )
    add_max_bytes(parser)
    parser.add_argument(
        "--verify",
        metavar="DATA",
        help="run the written file in its engine, and compare it with the NNP on this data: a "
        "file, or a folder of which the validation part is used",
    )
    parser.add_argument(
        "--limit",
        type=int,
        help="compare only so many samples: the first, of class folders a random subset",
    )
    add_columns(parser)


def run(arguments: argparse.Namespace, say: Callable[[str], None]) -> int:
    """Export, and compare if asked to; 1 if the file gives something else."""
    if arguments.verify is None and (
        arguments.limit is not None or arguments.scale is not None or arguments.inputs
    ):
        raise ValueError("--limit, --scale and --input say something about --verify only")
    output: Path = arguments.output or arguments.input.with_suffix(".onnx")
    if arguments.verify is not None and output.suffix != ".onnx":
        raise ValueError(f"--verify runs .onnx files, not {output}")
    check_free(check_export_output(output, arguments.arithmetic), arguments.force)
    comparison = None if arguments.verify is None else _comparison(arguments)
    result = export_file(
        arguments.input, output, arguments.network, arguments.max_bytes, arguments.arithmetic
    )
    for message in result.messages:
        sys.stderr.write(f"{message}\n")
    say(str(result))
    if comparison is None:
        return 0
    found = comparison.verify(output)
    say(str(found))
    return 0 if found.ok else 1


def _comparison(arguments: argparse.Namespace) -> Comparison:
    """What is verified, before anything is written: the data may not be there, or not fit."""
    with options_named():
        data = DataRecipe(
            arguments.verify,
            scale=arguments.scale,
            limit=arguments.limit,
            inputs=columns_of(arguments),
        )
        return Comparison(arguments.input, data, arguments.network, arguments.max_bytes)
