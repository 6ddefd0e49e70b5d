"""Ctrl-C that stops between two updates."""

from __future__ import annotations

import signal
from typing import Any


class InterruptGuard:
    """While entered, Ctrl-C is noted and raised by :meth:`check`; a second one is raised at once.

    NNabla's compiled code turns a KeyboardInterrupt that hits it into other
    errors, or loses it. Outside the main thread it does nothing.
    """

    def __init__(self) -> None:
        self._noted = False
        self._previous: Any = None

    def __enter__(self) -> InterruptGuard:
        try:
            self._previous = signal.signal(signal.SIGINT, self._note)
        except ValueError:
            self._previous = None
        return self

    def __exit__(self, *_: object) -> None:
        if self._previous is not None:
            signal.signal(signal.SIGINT, self._previous)

    def check(self) -> None:
        """Raise KeyboardInterrupt if Ctrl-C was pressed."""
        if self._noted:
            raise KeyboardInterrupt

    def _note(self, *_: object) -> None:
        if self._noted:
            raise KeyboardInterrupt
        self._noted = True
