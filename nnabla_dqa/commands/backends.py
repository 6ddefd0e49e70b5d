"""``nnabla-dqa backends``."""

from __future__ import annotations

import argparse
from typing import Callable

HELP = "say what computes the mixtures on this machine, and why if it is not the fast code"
EXAMPLE = """example:
  nnabla-dqa backends
  NNABLA_DQA_BACKEND=portable nnabla-dqa train --recipe recipe.yaml -o run   # not the fast code
"""


def add(parser: argparse.ArgumentParser) -> None:
    """Nothing to choose."""


def run(arguments: argparse.Namespace, say: Callable[[str], None]) -> int:
    """One line for each kind of device, and the choice that holds; 0."""
    from nnabla_dqa.backends import available_backends, current_backend

    chosen = current_backend()
    for device, description in available_backends().items():
        say(f"{device:5} {description}")
    say(f"chosen: {chosen}")
    return 0
