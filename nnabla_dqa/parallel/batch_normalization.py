"""Batch normalization whose statistics in training are those of all ranks.

With the samples of all ranks, M values a channel:
    mu = sum x / M,  v = sum (x - mu)^2 / M,  xhat = (x - mu) / sqrt(v + eps),
    y = gamma xhat + beta,
    dL/dx = gamma / sqrt(v + eps) (dy - sum dy / M - xhat sum(dy xhat) / M),
all sums over all ranks, L the sum of the losses of all ranks. The gradients of
gamma and beta are those of this rank's own loss: averaged over the ranks, like
all gradients, they are those of the mean loss. Running statistics move as in
``F.batch_normalization``: the running variance takes the unbiased M / (M - 1) v.
"""

from __future__ import annotations

from typing import Any, Callable, List, Tuple

import nnabla as nn
import nnabla.functions as F
import nnabla.parametric_functions as PF
import numpy as np
from nnabla.function import PythonFunction
from nnabla.initializer import ConstantInitializer
from nnabla.parameter import get_parameter_or_create

from nnabla_dqa.parallel.base import Communicator
from nnabla_dqa.parallel.mpi import MpiCommunicator
from nnabla_dqa.parallel.nccl import NcclCommunicator

Normalization = Callable[[nn.Variable, bool, int], nn.Variable]
DECAY, EPS = 0.9, 1e-5


def synchronized_batch_normalization(communicator: Communicator) -> Normalization:
    """Batch normalization over all ranks, with the parameters of ``PF.batch_normalization``.

    Args:
        communicator: The ranks; alone it is ``PF.batch_normalization``.

    Returns:
        ``normalization(h, train, channel_axis)``, which creates or uses
        ``bn/beta``, ``bn/gamma``, ``bn/mean`` and ``bn/var`` of the current
        parameter scope and gives a variable shaped like ``h``. With ``train``
        it uses the statistics of the batch over all ranks and moves the
        running ones, otherwise it uses the running ones.
    """

    def normalization(h: nn.Variable, train: bool, channel_axis: int) -> nn.Variable:
        if communicator.size == 1 or not train:
            return PF.batch_normalization(h, axes=[channel_axis], batch_stat=train)
        shape = [1] * h.ndim
        shape[channel_axis] = h.shape[channel_axis]
        with nn.parameter_scope("bn"):
            beta, gamma, mean, var = (
                get_parameter_or_create(name, shape, ConstantInitializer(value), trained)
                for name, value, trained in (
                    *(("beta", 0, True), ("gamma", 1, True)),
                    *(("mean", 0, False), ("var", 1, False)),
                )
            )
        return normalize(communicator, h, beta, gamma, mean, var, channel_axis)

    return normalization


def normalize(
    communicator: Communicator,
    x: nn.Variable,
    beta: nn.Variable,
    gamma: nn.Variable,
    mean: nn.Variable,
    variance: nn.Variable,
    channel_axis: int,
    decay_rate: float = DECAY,
    eps: float = EPS,
) -> nn.Variable:
    """Normalize by the statistics of the batch over all ranks; moves ``mean`` and ``variance``.

    A graph with it trains; over MPI it cannot be saved as an NNP.

    Args:
        communicator: The ranks.
        x: Values of this rank, channels on ``channel_axis``.
        beta: Shift, C numbers, as are the next three.
        gamma: Scale.
        mean: Running mean.
        variance: Running variance.
        channel_axis: Of ``x``.
        decay_rate: Share of the old running statistics.
        eps: Added to the variance.
    """
    if communicator.size == 1:
        return F.batch_normalization(
            x, beta, gamma, mean, variance, [channel_axis], decay_rate, eps, True
        )
    if isinstance(communicator, NcclCommunicator):
        return F.sync_batch_normalization(
            *(x, beta, gamma, mean, variance, communicator.nnabla),
            axes=[channel_axis],
            decay_rate=decay_rate,
            eps=eps,
            batch_stat=True,
        )
    if not isinstance(communicator, MpiCommunicator):
        raise TypeError(f"{type(communicator).__name__} has no synchronized batch normalization")
    function = _Synchronized(communicator, channel_axis, decay_rate, eps)
    return function(x, beta, gamma, mean, variance)


class _Synchronized(PythonFunction):  # type: ignore[misc]
    """Inputs x, beta, gamma, running mean and variance; output y."""

    def __init__(
        self, communicator: MpiCommunicator, channel_axis: int, decay_rate: float, eps: float
    ) -> None:
        super().__init__()
        self._communicator = communicator
        self._axis = channel_axis
        self._decay = decay_rate
        self._eps = eps
        self._count = 0.0
        self._mean = self._inverse = np.zeros(0)

    @property
    def name(self) -> str:
        return "SynchronizedBatchNormalization"

    def min_outputs(self) -> int:
        return 1

    def grad_depends_output_data(self, i: int, o: int) -> bool:
        return False

    def grad_depends_input_data(self, i: int, j: int) -> bool:
        return j in (0, 2)

    def setup_impl(self, inputs: List[Any], outputs: List[Any]) -> None:
        outputs[0].reset_shape(inputs[0].shape, True)

    def forward_impl(self, inputs: List[Any], outputs: List[Any]) -> None:
        x = self._split(inputs[0].d)
        self._count, self._mean, deviation = self._moments(x)
        self._inverse = 1.0 / np.sqrt(deviation / self._count + self._eps)
        y = self._normalized(x)
        y *= _channels(inputs[2].d)
        y += _channels(inputs[1].d)
        outputs[0].d = y.reshape(outputs[0].shape)
        unbiased = deviation / max(1.0, self._count - 1.0)
        for running, new in ((inputs[3], self._mean), (inputs[4], unbiased)):
            moved = self._decay * running.d.reshape(-1) + (1.0 - self._decay) * new
            running.d = moved.reshape(running.shape)

    def backward_impl(
        self, inputs: List[Any], outputs: List[Any], propagate_down: List[bool], accum: List[bool]
    ) -> None:
        dy = self._split(outputs[0].g)
        normal = self._normalized(self._split(inputs[0].d))
        along_one, along_x = _sum(dy), _sum(dy * normal)
        gradients = [None, along_one, along_x]
        if propagate_down[0]:
            sums = self._communicator.gather_array(np.stack([along_one, along_x])).sum(axis=0)
            one, x = sums / self._count
            normal *= _channels(x)
            inner = dy - _channels(one) - normal
            gradients[0] = inner * _channels(inputs[2].d.reshape(-1) * self._inverse)
        for i, gradient in enumerate(gradients):
            if propagate_down[i] and gradient is not None:
                shaped = gradient.reshape(inputs[i].shape)
                inputs[i].g = inputs[i].g + shaped if accum[i] else shaped

    def _split(self, array: np.ndarray) -> np.ndarray:
        """The array with its channels on the second of three axes."""
        before = int(np.prod(array.shape[: self._axis]))
        return array.reshape(before, array.shape[self._axis], -1)

    def _normalized(self, x: np.ndarray) -> np.ndarray:
        normal: np.ndarray = x - _channels(self._mean)
        normal *= _channels(self._inverse)
        return normal

    def _moments(self, x: np.ndarray) -> Tuple[float, np.ndarray, np.ndarray]:
        """Count, mean and sum of squared deviations over all ranks, pooled (Chan et al., 1979)."""
        count = x.size // x.shape[1]
        mean = _sum(x) / count
        deviation = _sum(np.square(x - _channels(mean)))
        rows = self._communicator.gather_array(
            np.stack([np.full_like(mean, count), mean, deviation])
        )
        counts, means, deviations = rows[:, 0], rows[:, 1], rows[:, 2]
        total = counts.sum(axis=0)
        pooled = (counts * means).sum(axis=0) / total
        apart = (counts * np.square(means - pooled)).sum(axis=0)
        return float(total[0]), pooled, deviations.sum(axis=0) + apart


def _sum(array: np.ndarray) -> np.ndarray:
    """A sum for each channel, float64."""
    return np.asarray(array.sum(axis=(0, 2), dtype=np.float64))


def _channels(values: np.ndarray) -> np.ndarray:
    """A number for each channel, float32, to be combined with an array that is split."""
    return np.asarray(values, np.float32).reshape(1, -1, 1)
