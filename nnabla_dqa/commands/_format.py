"""Lines that commands print about a training."""

from __future__ import annotations

import sys
from typing import Optional

from nnabla_dqa.training.result import Epoch, TrainingStopped


def epoch_line(epoch: Epoch, epochs: int) -> str:
    """An epoch in one line."""
    score = "" if epoch.score is None else f", {epoch.metric} {epoch.score:.4f}"
    soft = "" if epoch.soft_score is None else f" (as mixed: {epoch.soft_score:.4f})"
    end = ", lowest bits alone" if epoch.hard else ""
    waited = epoch.waited_seconds or 0.0
    slow = ""
    if waited >= 1 and waited > 0.1 * epoch.seconds:
        slow = f", {waited:.0f} of them for data: {epoch.loaded_per_second:.0f} samples/s are read"
    return (
        f"epoch {epoch.epoch}/{epochs}: loss {epoch.loss:.4f}{score}{soft}{end} "
        f"({epoch.seconds:.0f} s{slow})"
    )


def tell_stopped(stopped: TrainingStopped, command: Optional[str] = None) -> int:
    """Say on stderr where a stopped training goes on; the exit status."""
    hint = "; the same command with --resume goes on" if stopped.checkpoint else ""
    if command and stopped.checkpoint:
        hint = f"; {command} goes on"
    sys.stderr.write(f"nnabla-dqa: {stopped}{hint}\n")
    return 1
