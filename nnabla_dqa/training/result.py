"""What a training returns: its epochs, its result, and where it stopped."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, Dict, Optional, Tuple

from nnabla_dqa.layers.report import Report

TIMES = ("seconds", "loaded_per_second", "waited_seconds")
"""The fields of an :class:`Epoch` that differ between equal trainings."""


@dataclasses.dataclass(frozen=True)
class Epoch:
    """One epoch.

    Attributes:
        epoch: Counted from 1.
        loss: Mean over its steps.
        learning_rate: At its last step.
        hard: Whether its first step used the target quantizers alone.
        metric: ``"accuracy"`` (0 to 1) or ``"mean squared error"``; empty without a score.
        score: Of the network with the target quantizers alone, on the
            validation data; None without validation data or targets.
        seconds: Reading, training and evaluating.
        soft_score: Of the mixture as it is used in training; None if it is no other.
        training_score: Accuracy on the training samples as they were trained on.
        top5: As ``score``, for the five highest outputs.
        temperature: At its end; None if nothing is cooled.
        attention: Attention weights of each layer's quantizers at its end.
        loaded_per_second: Samples that the threads which read ahead could deliver in a second.
        waited_seconds: How long training waited for samples.
    """

    epoch: int
    loss: float
    learning_rate: float
    hard: bool
    metric: str
    score: Optional[float]
    seconds: float
    soft_score: Optional[float] = None
    training_score: Optional[float] = None
    top5: Optional[float] = None
    temperature: Optional[float] = None
    attention: Dict[str, Tuple[float, ...]] = dataclasses.field(default_factory=dict)
    loaded_per_second: Optional[float] = dataclasses.field(default=None, compare=False)
    waited_seconds: Optional[float] = dataclasses.field(default=None, compare=False)

    def summary(self) -> Dict[str, Any]:
        """JSON values without times and attention: equal for equal trainings, and short."""
        values = dataclasses.asdict(self)
        for name in (*TIMES, "attention"):
            del values[name]
        return {key: value for key, value in values.items() if value is not None}


class TrainingStopped(KeyboardInterrupt):
    """Training was interrupted; ``checkpoint`` is where it goes on, None if nothing was kept.

    Args:
        step: Steps done.
        steps: Steps of the whole training.
        saved: Steps that the checkpoint holds.
        checkpoint: Its path.
        together: Whether all processes stopped after the same step.
    """

    def __init__(
        self, step: int, steps: int, saved: int, checkpoint: Path, together: bool = True
    ) -> None:
        self.checkpoint = checkpoint if saved else None
        self.together = together
        where = f"{saved} kept in {checkpoint}" if saved else "nothing kept"
        super().__init__(f"stopped after {step} of {steps} steps; {where}")


@dataclasses.dataclass(frozen=True)
class Training:
    """What :func:`nnabla_dqa.train` did.

    Attributes:
        path: The trained network: an NNP to deploy, or what a model was deployed to.
        checkpoint: Where the training could go on.
        epochs: All of them.
        report: The layers; None for a float network.
        messages: What the user should know.
        folder: Of the run, if there is one.
        deployed: The low-bit network in it (float for a float model).
        deployed_score: Of that file on the validation data, by the metric of the epochs.
        has_new_statistics: Whether statistics of batch normalization were computed anew at the
            end; the last epoch's score is with them.
    """

    path: Path
    checkpoint: Path
    epochs: Tuple[Epoch, ...]
    report: Optional[Report]
    messages: Tuple[str, ...]
    folder: Optional[Path] = None
    deployed: Optional[Path] = None
    deployed_score: Optional[float] = None
    has_new_statistics: bool = False

    @property
    def score(self) -> Optional[float]:
        """The last epoch's."""
        return self.epochs[-1].score
