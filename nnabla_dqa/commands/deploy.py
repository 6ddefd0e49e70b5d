"""``nnabla-dqa deploy``."""

from __future__ import annotations

import argparse
import math
import sys
from pathlib import Path
from typing import Callable, Dict, Iterator, Optional

import numpy as np

from nnabla_dqa.commands._arguments import (
    add_columns,
    add_max_bytes,
    add_output,
    beside,
    check_output,
    columns_of,
    options_named,
)
from nnabla_dqa.nnp.deploy import deploy_file
from nnabla_dqa.nnp.file import NetworkFile
from nnabla_dqa.recipes.parts import DataRecipe
from nnabla_dqa.training.tasks.file_scores import input_batches, open_for

HELP = "write a small NNP of standard functions that holds the quantized weights"
EXAMPLE = """examples:
  nnabla-dqa deploy lenet_dqa_trained.nnp -o lenet_2bit.nnp
  nnabla-dqa deploy lenet_dqa_trained.nnp --fold-bn --select argmax
  nnabla-dqa deploy lenet_dqa_trained.nnp --bn-data mnist/ --bn-samples 2000
"""


def add(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("input", metavar="NNP", type=Path, help="a converted and trained NNP")
    add_output(parser, "<input>_deployed.nnp")
    add_max_bytes(parser)
    parser.add_argument(
        "--select",
        choices=("target", "argmax"),
        default="target",
        help="each layer's target, the lowest bit width (default), or the quantizer with the "
        "largest attention",
    )
    parser.add_argument("--choose", choices=("lowest", "argmax"), help=argparse.SUPPRESS)
    parser.add_argument(
        "--fold-bn",
        action="store_true",
        help="fold batch normalization into the layers before it; levels are per channel then "
        "(also for a file that is deployed already)",
    )
    parser.add_argument(
        "--bn-data",
        metavar="DATA",
        help="compute the statistics of batch normalization anew from this data",
    )
    parser.add_argument("--bn-samples", metavar="N", type=int, help="from how many samples (1000)")
    add_columns(parser)
    parser.add_argument(
        "--whole",
        action="store_true",
        help="keep training networks, optimizers and all other members of the file",
    )
    parser.add_argument(
        "--allow-untrained",
        action="store_true",
        help="deploy a file that was not trained after it was converted",
    )


def run(arguments: argparse.Namespace, say: Callable[[str], None]) -> int:
    """Deploy."""
    source: Path = arguments.input
    if arguments.fold_bn and arguments.whole:
        raise ValueError(
            "--fold-bn changes weights, which the networks of --whole share; choose one"
        )
    select = arguments.select
    if arguments.choose is not None:
        select = "target" if arguments.choose == "lowest" else arguments.choose
        sys.stderr.write(f"--choose is deprecated; write --select {select}\n")
    output = check_output(
        arguments.output or beside(source, "_deployed"), [source], arguments.force
    )
    with options_named():
        result = deploy_file(
            source,
            output,
            select=select,
            fold=arguments.fold_bn,
            whole=arguments.whole,
            allow_untrained=arguments.allow_untrained,
            samples=_samples(arguments),
            max_bytes=arguments.max_bytes,
        )
    for message in result.messages:
        sys.stderr.write(f"{message}\n")
    say(str(result))
    return 0


def _samples(arguments: argparse.Namespace) -> Optional[Iterator[Dict[str, np.ndarray]]]:
    if arguments.bn_data is None:
        if arguments.bn_samples is not None or arguments.scale is not None or arguments.inputs:
            raise ValueError("--bn-samples, --scale and --input say something about --bn-data only")
        return None
    wanted = 1000 if arguments.bn_samples is None else arguments.bn_samples
    if wanted < 2:
        raise ValueError(f"--bn-samples {wanted}: at least 2 are needed")
    place = DataRecipe(arguments.bn_data, scale=arguments.scale, inputs=columns_of(arguments))
    file = NetworkFile.read(arguments.input, arguments.max_bytes)
    data = open_for(file, place, "train")
    count = min(wanted, len(data))
    # Mini-batches are of equal size; hardly a sample is left over.
    batches = max(1, math.ceil(count / 100))
    return input_batches(file, place, data, count // batches, batches)
