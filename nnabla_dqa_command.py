"""The entry point of ``nnabla-dqa``: outside the package, to be there before NNabla is imported."""

from __future__ import annotations

import logging


def main() -> int:
    """Run the command line without NNabla's greeting on stderr."""
    logging.disable(logging.INFO)
    from nnabla_dqa.cli import main as run

    return run()
