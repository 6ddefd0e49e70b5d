"""What a training tells: its epochs, its result, and where it stopped."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Iterable, Optional, Tuple

from nnabla_dqa.files import PathLike
from nnabla_dqa.reporting.summary import Report


@dataclasses.dataclass(frozen=True)
class Epoch:
    """One epoch: mean loss, and the score of the hard network on the validation data.

    ``score`` is accuracy (0 to 1) or mean squared error, as ``metric`` says;
    None without validation data or targets.
    """

    epoch: int
    loss: float
    learning_rate: float
    hard: bool
    metric: str
    score: Optional[float]
    seconds: float


class TrainingStopped(KeyboardInterrupt):
    """Training was interrupted; ``checkpoint`` is where it goes on, None before the first epoch."""

    def __init__(self, saved: int, checkpoint: Path) -> None:
        self.checkpoint = checkpoint if saved else None
        where = f"{saved} finished and kept in {checkpoint}" if saved else "nothing kept"
        super().__init__(f"stopped in epoch {saved + 1}; {where}")


@dataclasses.dataclass(frozen=True)
class Training:
    """What :func:`train` did."""

    path: Path
    checkpoint: Path
    epochs: Tuple[Epoch, ...]
    report: Report
    messages: Tuple[str, ...]

    @property
    def score(self) -> Optional[float]:
        """The last epoch's."""
        return self.epochs[-1].score


class Monitors:
    """NNabla's monitor files in ``folder``: one line an epoch for loss, score and learning rate."""

    def __init__(self, folder: PathLike, history: Iterable[Epoch] = ()) -> None:
        from nnabla.monitor import Monitor, MonitorSeries

        monitor = Monitor(str(folder))
        self._series = {
            name: MonitorSeries(name, monitor, interval=1, verbose=False)
            for name in ("loss", "score", "learning rate")
        }
        for epoch in history:
            self.add(epoch)

    def add(self, epoch: Epoch) -> None:
        values = {"loss": epoch.loss, "score": epoch.score, "learning rate": epoch.learning_rate}
        for name, value in values.items():
            if value is not None:
                self._series[name].add(epoch.epoch, value)
