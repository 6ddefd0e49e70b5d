"""What the training loop needs to know of what it trains."""

from __future__ import annotations

import abc
from typing import Any, Dict, List, Mapping, NamedTuple, Optional

import numpy as np

from nnabla_dqa.data import Data
from nnabla_dqa.distributed import Communicator
from nnabla_dqa.graph.traverse import LiveGraph
from nnabla_dqa.layers.tensors import QuantizedTensor, find_quantized
from nnabla_dqa.quantization.graph_ops import Variable
from nnabla_dqa.recipes.settings import Settings
from nnabla_dqa.schedules import Schedule
from nnabla_dqa.solver.attached import AttachedSolver

_NORMALIZATION = ("BatchNormalization", "FusedBatchNormalization", "SyncBatchNormalization")


class Scores(NamedTuple):
    """What the validation data say, as ``metric`` measures it.

    Attributes:
        metric: ``"accuracy"`` (0 to 1), ``"mean squared error"``, or empty for none.
        hard: Of the network with the lowest bit widths alone.
        soft: Of the mixture as it is used in training; None if it was not measured.
        top5: Share of the samples whose class is among the five highest
            outputs of the hard network; None if it was not measured.
    """

    metric: str = ""
    hard: Optional[float] = None
    soft: Optional[float] = None
    top5: Optional[float] = None


class Job(abc.ABC):
    """A graph with a loss, the solver that lowers it, and what feeds it.

    Attributes:
        settings: Epochs, learning rate, seed and so on.
        data: Training samples.
        source: What messages call the data.
        loss: What is lowered, shape ().
        solver: An attached solver, or NNabla's own for a float network.
        scope: The parameter scope of the network.
        communicator: The processes that train together.
        workers: Threads that read the data ahead; 0 for none.
    """

    settings: Settings
    data: Data
    source: str
    loss: Variable
    solver: Any
    scope: Any
    communicator: Communicator
    workers: int = 0

    @abc.abstractmethod
    def fill(self, batch: Mapping[str, np.ndarray]) -> None:
        """Put this process's part of a mini-batch into the graph."""

    @abc.abstractmethod
    def evaluate(self) -> Scores:
        """Scores over the validation data of all processes."""

    @abc.abstractmethod
    def parameters(self) -> Dict[str, Variable]:
        """All parameters by name, of state too: what a checkpoint holds."""

    @abc.abstractmethod
    def identity(self) -> Dict[str, Any]:
        """JSON values that a checkpoint must agree with to be gone on with."""

    def hits(self) -> Optional[int]:
        """Samples of the last mini-batch that the network in training classified rightly."""
        return None

    @property
    def steps_per_epoch(self) -> int:
        """Updates of one epoch; the samples that fill no mini-batch are left out."""
        return len(self.data) // self.settings.batch_size

    @property
    def steps(self) -> int:
        """Updates of the whole training."""
        return self.steps_per_epoch * self.settings.epochs

    @property
    def layers(self) -> List[QuantizedTensor]:
        """The DQA layers; none for a float network."""
        return find_quantized(self.scope)

    @property
    def schedule(self) -> Optional[Schedule]:
        """What drives the attention, if layers mix quantizers."""
        annealer = self.solver.annealer if isinstance(self.solver, AttachedSolver) else None
        return None if annealer is None else annealer.schedule

    def is_hard_at(self, step: int) -> bool:
        """Whether the update after ``step`` others uses the lowest bit widths alone."""
        if not isinstance(self.solver, AttachedSolver):
            return False
        schedule = self.schedule
        if schedule is None:
            return True
        return schedule.soft_steps < schedule.steps and step >= schedule.soft_steps

    def statistics(self) -> List[Any]:
        """The running statistics of batch normalization that training updates."""
        found: Dict[Any, None] = {}
        for function in LiveGraph.of({"loss": self.loss}).functions:
            moving = function.arguments.get("batch_stat", True)
            if function.info.type_name in _NORMALIZATION and moving:
                found.update({v.data: None for v in function.inputs[3:5] if v.parent is None})
        return list(found)
