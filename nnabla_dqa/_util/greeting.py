"""NNabla imported without its greeting on stderr under ``python -m nnabla_dqa``.

Python imports a package before it runs the package's ``__main__``, and NNabla
greets whoever imports it first. ``nnabla_dqa_command`` does the same for the
command ``nnabla-dqa``, which begins outside of the package.
"""

from __future__ import annotations

import logging
import sys


def import_nnabla() -> None:
    """Import NNabla, in silence where Python is still looking for the module after ``-m``."""
    # Python's own sign for that: https://docs.python.org/3/library/sys.html#sys.argv
    looking = getattr(sys, "argv", [])[:1] == ["-m"]
    before = logging.root.manager.disable
    if looking:
        logging.disable(max(before, logging.INFO))
    import nnabla  # noqa: F401

    logging.disable(before)


import_nnabla()
