"""What the training loop needs to know of what it trains."""

from __future__ import annotations

import abc
from typing import Any, Dict, List, Mapping, NamedTuple, Optional

import nnabla as nn
import numpy as np

from nnabla_dqa.data import Data
from nnabla_dqa.distributed import Communicator
from nnabla_dqa.layers.tensors import QuantizedTensor, find_quantized
from nnabla_dqa.quantization.graph_ops import Variable
from nnabla_dqa.recipes.recipe import Recipe
from nnabla_dqa.schedules import Schedule
from nnabla_dqa.solver.attached import AttachedSolver


class Scores(NamedTuple):
    """Scores on the validation data, as ``metric`` measures them.

    Attributes:
        metric: ``"accuracy"`` (0 to 1), ``"mean squared error"``, or empty for none.
        hard: Of the network with the target quantizers alone.
        soft: Of the mixture as it is used in training; None if it was not measured.
        top5: Fraction of the samples whose class is among the five highest
            outputs of the hard network; None if it was not measured.
    """

    metric: str = ""
    hard: Optional[float] = None
    soft: Optional[float] = None
    top5: Optional[float] = None


class Trainable(abc.ABC):
    """A graph with a loss, the solver that lowers it, and what feeds it.

    Attributes:
        recipe: Epochs, learning rate, seed and so on.
        data: Training samples.
        source: What messages call the data.
        loss: What is lowered, shape ().
        solver: An attached solver, or NNabla's own for a float network.
        scope: The parameter scope of the network.
        communicator: The processes that train together.
        workers: Threads that read the data ahead; 0 for none.
        strength: Lambda of the penalty on attention in the loss; 0 if there is none.
    """

    recipe: Recipe
    data: Data
    source: str
    loss: Variable
    solver: Any
    scope: Any
    communicator: Communicator
    workers: int = 0
    strength: float = 0.0

    @abc.abstractmethod
    def fill(self, batch: Mapping[str, np.ndarray]) -> None:
        """Put this process's part of a mini-batch into the graph."""

    @abc.abstractmethod
    def evaluate(self) -> Scores:
        """Scores over the validation data of all processes."""

    def parameters(self) -> Dict[str, Variable]:
        """All parameters by name, of state too: what a checkpoint holds."""
        with nn.parameter_scope("", self.scope):
            return dict(nn.get_parameters(grad_only=False))

    @abc.abstractmethod
    def identity(self) -> Dict[str, Any]:
        """JSON values that a checkpoint must agree with to be resumed."""

    def correct(self) -> Optional[int]:
        """How many samples of the last mini-batch the network in training classified correctly."""
        return None

    def watched(self) -> List[Variable]:
        """Variables within the graph of ``loss`` whose values are read after an update."""
        return []

    @property
    def steps_per_epoch(self) -> int:
        """Steps of one epoch; the samples that fill no mini-batch are skipped."""
        return len(self.data) // self.recipe.batch_size

    @property
    def steps(self) -> int:
        """Steps of the whole training."""
        return self.steps_per_epoch * self.recipe.epochs

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
        """Whether the step after ``step`` others uses the target quantizers alone."""
        if not isinstance(self.solver, AttachedSolver):
            return False
        schedule = self.schedule
        if schedule is None:
            return True
        return schedule.soft_steps < schedule.steps and step >= schedule.soft_steps

    def begins_hard_at(self, step: int) -> bool:
        """Whether the step after ``step`` others is the first with the target quantizers alone."""
        return self.is_hard_at(step) and not (step and self.is_hard_at(step - 1))

    def begin_hard(self) -> None:  # noqa: B027
        """What is to be done before that step; no checkpoint after it is without it."""

    def statistics(self) -> List[Any]:
        """The running statistics of normalization in the graph, which differ between processes."""
        return []
