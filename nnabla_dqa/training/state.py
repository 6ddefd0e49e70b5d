"""Where a training is: what a checkpoint holds besides parameters and solver states."""

from __future__ import annotations

import dataclasses
from typing import Any, Dict, List, Mapping

from nnabla_dqa.training.result import Epoch


@dataclasses.dataclass
class Progress:
    """The position of a training.

    Attributes:
        step: Steps done.
        history: Epochs finished.
        losses: Of the steps of the epoch under way.
        correct: Its training samples that were classified correctly.
        seconds: Spent on it up to now.
        skipped: Files that were skipped so far, and why.
    """

    step: int = 0
    history: List[Epoch] = dataclasses.field(default_factory=list)
    losses: List[float] = dataclasses.field(default_factory=list)
    correct: int = 0
    seconds: float = 0.0
    skipped: Dict[str, str] = dataclasses.field(default_factory=dict)

    def end_epoch(self, epoch: Epoch) -> None:
        """Add a finished epoch; the next one begins."""
        self.history.append(epoch)
        self.losses, self.correct, self.seconds = [], 0, 0.0

    def to_json(self) -> Dict[str, Any]:
        """The position as JSON values."""
        values = dataclasses.asdict(self)
        values["epochs"] = values.pop("history")
        return values

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Progress:
        """The inverse of :meth:`to_json`; other keys are passed over."""
        names = {field.name for field in dataclasses.fields(cls)} - {"history"}
        history = [_epoch_of(epoch) for epoch in values["epochs"]]
        return cls(history=history, **{name: values[name] for name in names})


def _epoch_of(values: Mapping[str, Any]) -> Epoch:
    attention = {name: tuple(shares) for name, shares in values["attention"].items()}
    return Epoch(**{**values, "attention": attention})
