"""Curves of a training as text files, while it goes on."""

from __future__ import annotations

import csv
from functools import partial
from pathlib import Path
from typing import Callable, Dict, Iterable, List, Optional

from nnabla_dqa._util.files import PathLike
from nnabla_dqa.training.result import Epoch


def _error(score: Optional[float], metric: str) -> Optional[float]:
    return 1.0 - score if score is not None and metric == "accuracy" else None


SERIES: Dict[str, Callable[[Epoch], Optional[float]]] = {
    "loss": lambda e: e.loss,
    "score": lambda e: e.score,
    "soft score": lambda e: e.soft_score,
    "error": lambda e: _error(e.score, e.metric),
    "training error": lambda e: _error(e.training_score, "accuracy"),
    "learning rate": lambda e: e.learning_rate,
    "temperature": lambda e: e.temperature,
}
"""The curves by name, and what of an epoch they show."""


class Monitors:
    """Files in ``folder``, one line an epoch.

    NNabla's own monitor files (``loss.series.txt`` and so on, those of which
    there are values) and ``attention.csv``: epoch, layer, then the shares of
    its quantizers from the lowest to the highest bit width.

    Args:
        folder: Made if it is not there.
        history: Epochs done already; the files begin with them.
    """

    def __init__(self, folder: PathLike, history: Iterable[Epoch] = ()) -> None:
        from nnabla.monitor import Monitor, MonitorSeries

        monitor = Monitor(str(folder))
        # A file appears with its first value.
        self._new = partial(MonitorSeries, monitor=monitor, interval=1, verbose=False)
        self._series: Dict[str, MonitorSeries] = {}
        self._attention = Path(folder) / "attention.csv"
        self._attention.unlink(missing_ok=True)
        for epoch in history:
            self.add(epoch)

    def add(self, epoch: Epoch) -> None:
        """Append an epoch's values."""
        for name, read in SERIES.items():
            value = read(epoch)
            if value is not None:
                if name not in self._series:
                    self._series[name] = self._new(name)
                self._series[name].add(epoch.epoch, value)
        rows: List[List[object]] = [[epoch.epoch, k, *v] for k, v in epoch.attention.items()]
        if rows:
            with self._attention.open("a", newline="", encoding="utf-8") as stream:
                csv.writer(stream).writerows(rows)
