"""The command ``nnabla-dqa``: an NNP in, a small NNP out, without model code."""

from __future__ import annotations

import argparse
import sys
import time
import traceback
import warnings
from typing import Any, List, Optional, Sequence

from nnabla_dqa._version import __version__
from nnabla_dqa.commands import (
    backends,
    check,
    convert,
    deploy,
    evaluate,
    export,
    report,
    summary,
    train,
)
from nnabla_dqa.distributed import ParallelError
from nnabla_dqa.distributed.launcher import detect_rank

_COMMANDS = {
    "convert": convert,
    "train": train,
    "summary": summary,
    "deploy": deploy,
    "check": check,
    "evaluate": evaluate,
    "export": export,
    "report": report,
    "backends": backends,
}
_EPILOG = """the usual way:
  nnabla-dqa convert lenet.nnp                                 -> lenet_dqa.nnp
  nnabla-dqa train   lenet_dqa.nnp --recipe mnist.yaml         -> lenet_dqa_trained.nnp
  nnabla-dqa deploy  lenet_dqa_trained.nnp -o lenet_2bit.nnp
  nnabla-dqa check   lenet_2bit.nnp
  nnabla-dqa export  lenet_2bit.nnp                            -> lenet_2bit.onnx

exit code: 0 done, 1 done with a negative answer or stopped, 2 not possible (one line says why)
"""


_WAIT = 2.0


def main(argv: Optional[Sequence[str]] = None) -> int:
    """Run the command line; returns the exit code.

    Args:
        argv: Arguments without the program's name; default: the process's.
    """
    arguments = parser_of_commands().parse_args(argv)
    command = _COMMANDS[arguments.command]
    with warnings.catch_warnings(record=not arguments.debug) as caught:
        try:
            code = int(command.run(arguments, _say))
        except KeyboardInterrupt:
            _complain("stopped")
            code = 1
        except BrokenPipeError:
            # The reader (head, less) has seen enough.
            sys.stderr.close()
            return 1
        except Exception as error:
            if _rank() > 0:
                # The same error in the first process ends all of them, and is told once.
                time.sleep(_WAIT)
            if arguments.debug:
                traceback.print_exc()
            _complain(_one_line(error))
            code = 2
    for message in _unseen(caught):
        _complain(f"warning: {message}")
    return code


def parser_of_commands() -> argparse.ArgumentParser:
    """What reads the command line; ``docs/commands.md`` is made of it."""
    parser = argparse.ArgumentParser(
        prog="nnabla-dqa",
        description=__doc__,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"nnabla_dqa {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, module in _COMMANDS.items():
        sub = commands.add_parser(
            name,
            help=module.HELP,
            description=module.HELP,
            epilog=module.EXAMPLE,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        module.add(sub)
        sub.add_argument("--debug", action="store_true", help="show where an error comes from")
    return parser


def _rank() -> int:
    try:
        return detect_rank()
    except ParallelError:
        return 0


def _say(text: str) -> None:
    print(text, flush=True)


def _complain(text: str) -> None:
    print(f"nnabla-dqa: {text}", file=sys.stderr, flush=True)


def _one_line(error: Exception) -> str:
    text = " ".join(str(error).split()).replace("max_bytes", "--max-bytes")
    if isinstance(error, OSError) and error.filename and error.strerror:
        text = f"{error.filename}: {error.strerror}"
    # Errors of this package say what is wrong; of others at least the kind is told.
    known = isinstance(error, (ValueError, OSError, FloatingPointError, KeyError, ParallelError))
    return text if known and text else f"{type(error).__name__}: {text} (--debug shows more)"


def _unseen(caught: Optional[List[Any]]) -> List[str]:
    return list(dict.fromkeys(" ".join(str(w.message).split()) for w in caught or []))
