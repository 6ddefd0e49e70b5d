"""``nnabla-dqa backends``."""

from __future__ import annotations

import argparse
from typing import Callable

HELP = "say what computes mixtures and layers on this machine, and why if it is not the fast code"
EXAMPLE = """example:
  nnabla-dqa backends
  NNABLA_DQA_BACKEND=portable NNABLA_DQA_LAYERS=nnabla nnabla-dqa train --recipe recipe.yaml -o run
"""


def add(parser: argparse.ArgumentParser) -> None:
    """Nothing to choose."""


def run(arguments: argparse.Namespace, say: Callable[[str], None]) -> int:
    """One line for each kind of device, and the choice that holds; 0."""
    from nnabla_dqa.backends import available_backends, current_backend
    from nnabla_dqa.backends.select import current_layers
    from nnabla_dqa.onednn import library

    chosen = f"chosen: {current_backend()} for mixtures, {current_layers()} for layers"
    say("mixtures")
    for device, description in available_backends().items():
        say(f"  {device:5} {description}")
    say("layers")
    say(f"  cpu   {(library.why_not() and f'NNabla: {library.why_not()}') or library.describe()}")
    say(chosen)
    return 0
