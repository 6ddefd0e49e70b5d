"""Driving the state of quantized layers from a training loop of any kind."""

from nnabla_dqa.solver.annealer import Annealer
from nnabla_dqa.solver.attached import AttachedSolver, attach
from nnabla_dqa.solver.finite_check import NonFiniteError, check_finite

__all__ = ["Annealer", "AttachedSolver", "NonFiniteError", "attach", "check_finite"]
