"""What can be wrong with an export, whatever the format."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from nnabla_dqa._util.files import PathLike, check_target


class ExportError(ValueError):
    """A network cannot be written in the format; the message is one line."""


def check_ending(path: PathLike, suffix: str) -> Path:
    """``path`` if a file of this ending can be written there; raises ExportError or OSError."""
    if Path(path).suffix != suffix:
        raise ExportError(f"{path}: the name must end in {suffix}")
    return check_target(path)


def check_finite(name: str, array: np.ndarray) -> None:
    """Raise ExportError if a parameter holds NaN or infinity."""
    if not np.isfinite(array).all():
        raise ExportError(f"parameter {name} holds NaN or infinity; nothing was written")
