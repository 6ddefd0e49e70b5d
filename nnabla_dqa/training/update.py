"""One step of a training: forward, backward, the gradients of all processes, the solver."""

from __future__ import annotations

import math
from typing import Any, Mapping, Optional, Sequence

import nnabla as nn
import nnabla.functions as F
import numpy as np

from nnabla_dqa._util.devices import in_float32
from nnabla_dqa.backends.release import release_mixtures
from nnabla_dqa.graph.traverse import LiveGraph
from nnabla_dqa.onednn.accelerate import fast
from nnabla_dqa.solver.attached import AttachedSolver
from nnabla_dqa.solver.finite_check import FiniteFlag, NonFiniteError
from nnabla_dqa.training.loss_scaler import LossScaler
from nnabla_dqa.training.nan_trace import first_non_finite
from nnabla_dqa.training.trainable import Trainable


class Updater:
    """Updates the parameters of ``trainable`` once a call.

    Args:
        trainable: What is trained.
        scaler: For half precision.
    """

    def __init__(self, trainable: Trainable, scaler: Optional[LossScaler] = None) -> None:
        self.trainable = trainable
        self.scaler = scaler
        self._statistics = trainable.statistics() if trainable.communicator.size > 1 else []
        # The solver's parameters and what reads the graph afterwards keep to the given one.
        self._loss = fast([trainable.loss, *trainable.watched()], trains=True)[0]
        self._release = release_mixtures(self._loss)
        self._gradients = FiniteFlag()
        # On a GPU a new seed costs a new generator, so it is given where something draws.
        functions = LiveGraph.of({"loss": trainable.loss}).functions
        self._draws = any("seed" in function.info.args for function in functions)

    def __call__(
        self, batch: Mapping[str, np.ndarray], rate: float, step: int, shared: nn.NdArray
    ) -> float:
        """Update with a mini-batch.

        Args:
            batch: This process's part.
            rate: Learning rate.
            step: Steps done before.
            shared: Averaged over the processes along with the gradients.

        Returns:
            The loss, over all processes.

        Raises:
            NonFiniteError: The loss, a weight or a gradient is NaN or infinite.
        """
        trainable, comm = self.trainable, self.trainable.communicator
        recipe = trainable.recipe
        trainable.fill(batch)
        # Dropout too depends on seed and step alone, so that resuming changes nothing.
        if self._draws:
            nn.seed(step_seed(recipe.seed, step, comm.rank))
        trainable.solver.zero_grad()
        self._loss.forward(clear_no_need_grad=True)
        # Backward may use the memory of the loss again, so its value is copied first. The copy
        # stays on the device: reading it here would make the GPU wait before backward begins.
        with in_float32():
            value = F.mul_scalar(self._loss.data, 1.0)
        scale = 1.0 if self.scaler is None else self.scaler.scale
        self._loss.backward(scale, clear_buffer=True, function_post_hook=self._release)
        if comm.size > 1:
            gradients = [v.grad for v in trainable.solver.get_parameters().values()]
            # Each process normalized by its own part of the mini-batch. Averaged after every
            # step, their running statistics are equal whenever they are used or saved.
            if isinstance(trainable.solver, AttachedSolver):
                gradients += trainable.solver.observed()
            comm.average([*gradients, *self._statistics, value, shared])
        self._begin_check()
        loss = float(value.data)
        if not np.isfinite(loss):
            raise self._not_finite(loss, step)
        trainable.solver.set_learning_rate(rate)
        if self.scaler is not None and not self._unscale(self.scaler):
            return loss
        if recipe.clip_gradient is not None:
            clip_gradients(trainable.solver, recipe.clip_gradient)
        if recipe.weight_decay:
            trainable.solver.weight_decay(recipe.weight_decay)
        trainable.solver.update()
        return loss

    def _begin_check(self) -> None:
        """Look for NaN and infinity while the GPU is busy; read after the loss."""
        solver = self.trainable.solver
        if isinstance(solver, AttachedSolver):
            solver.begin_check(every_gradient=self.scaler is not None)
        elif self.scaler is not None:
            self._gradients.begin([v.grad for v in solver.get_parameters().values()])

    def _overflowed(self) -> bool:
        solver = self.trainable.solver
        if isinstance(solver, AttachedSolver):
            return solver.gradients_overflowed()
        return not self._gradients.read()

    def _unscale(self, scaler: LossScaler) -> bool:
        """Take the scale out of the gradients; False if one overflowed and nothing is updated."""
        solver = self.trainable.solver
        if not self._overflowed():
            solver.scale_grad(1 / scaler.scale)
            scaler.succeeded()
            return True
        if not scaler.overflowed():
            raise NonFiniteError(
                "gradients are NaN or infinite at every loss scale down to 1; lower learning_rate "
                f"({self.trainable.recipe.learning_rate:g}) or train with type_config float"
            )
        if isinstance(solver, AttachedSolver):
            solver.skip_update()
        return False

    def _not_finite(self, loss: float, step: int) -> NonFiniteError:
        trainable, recipe = self.trainable, self.trainable.recipe
        where = first_non_finite(trainable.loss, trainable.parameters())
        return NonFiniteError(
            f"the loss is {loss} after {step} steps; the first number that is not finite is in "
            f"{where}; look for NaN in the data, or lower learning_rate "
            f"({recipe.learning_rate:g})"
        )


def clip_gradients(solver: Any, most: float) -> None:
    """Scale the gradients of a solver's parameters down to an L2 norm over all of them.

    Gradients that are NaN or infinite stay as they are, for the checks of the update to find.
    """
    gradients = [v.grad for v in solver.get_parameters().values()]
    with in_float32():
        norm = _norm(gradients)
        if math.isinf(norm):
            # Squares beyond float32: those of fractions of the largest gradient are not.
            peak = max(float(F.max(F.abs(g)).data) for g in gradients)
            norm = peak * _norm([F.mul_scalar(g, 1 / peak) for g in gradients])
    if math.isfinite(norm) and norm > most:
        solver.scale_grad(most / norm)


def _norm(arrays: Sequence[Any]) -> float:
    squares = [F.sum(F.mul2(a, a)) for a in arrays]
    total = squares[0] if len(squares) == 1 else F.add_n(*squares)
    return math.sqrt(float(total.data))


def step_seed(seed: int, step: int, rank: int = 0) -> int:
    """The seed of NNabla's random functions for one step, 0 to 2^31 - 1."""
    return int(np.random.SeedSequence([seed, step, rank]).generate_state(1)[0] % 2**31)
