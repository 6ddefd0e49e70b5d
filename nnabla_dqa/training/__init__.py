"""Driving the state of DQA layers from a training loop of any kind."""

from nnabla_dqa.training.annealer import Annealer
from nnabla_dqa.training.guard import NonFiniteError, check_finite
from nnabla_dqa.training.solver import AttachedSolver, attach

__all__ = ["Annealer", "AttachedSolver", "NonFiniteError", "attach", "check_finite"]
