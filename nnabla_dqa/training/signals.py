"""Ctrl-C and SIGTERM, noted and handled between two steps."""

from __future__ import annotations

import signal
from typing import Any, Dict


class StopRequested(KeyboardInterrupt):
    """The training was asked to stop, and nothing was interrupted in the middle."""


class InterruptGuard:
    """While entered, SIGINT (Ctrl-C) and SIGTERM are noted; a second one is raised at once.

    NNabla's compiled code turns a KeyboardInterrupt that hits it into other
    errors, or loses it. Outside the main thread it does nothing.
    """

    def __init__(self) -> None:
        self.noted = False
        self._previous: Dict[int, Any] = {}

    def __enter__(self) -> InterruptGuard:
        for number in (signal.SIGINT, signal.SIGTERM):
            try:
                self._previous[number] = signal.signal(number, self._note)
            except ValueError:
                continue
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def check(self) -> None:
        """Raise StopRequested if a signal came."""
        if self.noted:
            raise StopRequested

    def _note(self, *_: object) -> None:
        if self.noted:
            raise KeyboardInterrupt
        self.noted = True
