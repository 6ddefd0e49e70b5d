"""One process at a time trains into one place."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Iterator

from nnabla_dqa.training.checkpoint import CheckpointError

try:
    import fcntl
except ImportError:
    # Windows has no such locks.
    fcntl = None  # type: ignore[assignment]


@contextlib.contextmanager
def locked(checkpoint: Path) -> Iterator[None]:
    """Hold the lock of a checkpoint, a file beside it; the system frees it if the process dies.

    Raises:
        CheckpointError: Another process holds it.
    """
    if fcntl is None:
        yield
        return
    path = checkpoint.with_name(f".{checkpoint.name}.lock")
    with open(path, "ab") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise CheckpointError(f"{checkpoint}: another process trains into this") from None
        except OSError:
            # Some network file systems know no locks.
            pass
        try:
            yield
        finally:
            with contextlib.suppress(OSError):
                os.unlink(path)
