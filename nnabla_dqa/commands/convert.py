"""``nnabla-dqa convert``."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Callable, List

from nnabla_dqa.commands._arguments import add_max_bytes, add_output, beside, check_output
from nnabla_dqa.layers.rules import DEFAULT, Rule, Rules
from nnabla_dqa.nnp.convert import NothingToConvertError, convert_file
from nnabla_dqa.quantization.notation import EXAMPLES

HELP = "rewrite an NNP so that its weights can learn to live with few bits"
EXAMPLE = """examples:
  nnabla-dqa convert lenet.nnp
  nnabla-dqa convert lenet.nnp -o small.nnp --quantizers sawb:2,4,8 --keep-float Convolution
  nnabla-dqa convert lenet.nnp --quantizers minmax:2,4,8 --rule 'Affine*=bwn/twn/float'
  nnabla-dqa convert lenet.nnp --quantizers sawb:2,4,channel_axis=0 --mixing binary-relax
  nnabla-dqa convert lenet.nnp --quantizers sawb:2,4,8 --activations pact:2,4,8
  nnabla-dqa convert lenet.nnp --rules rules.yaml

rules.yaml:
  quantizers: minmax:2,4,8
  rules:
    - {layers: "Affine*", quantizers: bwn/twn/float}
    - {layers: [Convolution, Convolution_2], quantizers: [sawb:2, {type: MinMax, bits: 8}]}
"""


def add(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("input", metavar="NNP", type=Path, help="the file to convert; it is kept")
    add_output(parser, "<input>_dqa.nnp")
    add_max_bytes(parser)
    parser.add_argument(
        "-q",
        "--quantizers",
        metavar="SET",
        help=f"for all layers that no rule names (default: {DEFAULT}); examples: {EXAMPLES}",
    )
    parser.add_argument(
        "--rule",
        metavar="LAYERS=SET",
        action="append",
        default=[],
        help="quantizers for the layers whose name matches a glob; can be repeated",
    )
    parser.add_argument(
        "--keep-float",
        metavar="LAYERS",
        action="append",
        default=[],
        help="leave layers as they are; the same as --rule LAYERS=float",
    )
    parser.add_argument(
        "--mixing",
        metavar="RULE",
        help="how quantizers are mixed: attention (default), binary-relax, or any rule that is "
        "installed; options as in attention:init=uniform",
    )
    parser.add_argument(
        "--activations",
        metavar="SET",
        help="quantizers of what enters the layers, such as pact:2,4,8 or emaminmax:2 (default: "
        "activations stay float); the network's input stays as it is",
    )
    parser.add_argument(
        "--keep-activations",
        metavar="LAYERS",
        action="append",
        default=[],
        help="leave what enters layers as it is; can be repeated",
    )
    parser.add_argument(
        "--rules", metavar="YAML", type=Path, help="rules from a file, instead of the options above"
    )


def run(arguments: argparse.Namespace, say: Callable[[str], None]) -> int:
    """Convert; 1 if there was nothing to convert."""
    source: Path = arguments.input
    rules = _rules(arguments)
    output = check_output(arguments.output or beside(source, "_dqa"), [source], arguments.force)
    try:
        conversion = convert_file(source, output, rules, arguments.max_bytes)
    except NothingToConvertError as nothing:
        sys.stderr.write(f"nnabla-dqa: {nothing}\n")
        return 1
    say(str(conversion))
    return 0


def _rules(arguments: argparse.Namespace) -> Rules:
    options = (
        *(arguments.quantizers, arguments.rule, arguments.keep_float, arguments.mixing),
        *(arguments.activations, arguments.keep_activations),
    )
    if arguments.rules is not None:
        if any(options):
            raise ValueError(
                "--rules is given with --quantizers, --rule, --keep-float, --mixing, "
                "--activations or --keep-activations; write it all in the file, or all as options"
            )
        return Rules.from_yaml(arguments.rules)
    made: List[Rule] = []
    for text in arguments.rule:
        made.append(_rule(text))
    made += [Rule(pattern, "float") for pattern in arguments.keep_float]
    return Rules(
        arguments.quantizers or DEFAULT,
        tuple(made),
        arguments.mixing,
        arguments.activations,
        tuple(arguments.keep_activations),
    )


def _rule(text: str) -> Rule:
    parts = text.split("=")
    if len(parts) == 1:
        raise ValueError(f"--rule {text!r} is not LAYERS=SET, such as 'Affine*=minmax:2,4,8'")
    # Both a layer's name and the options of a quantizer may have an equals sign.
    errors = []
    for i in range(1, len(parts)):
        try:
            return Rule("=".join(parts[:i]), "=".join(parts[i:]))
        except ValueError as error:
            errors.append(error)
    raise errors[0]
