"""The nets that are compared."""

from __future__ import annotations

import argparse
import contextlib
import warnings
from typing import Any, Dict, Iterator, List, Optional
from unittest import mock

import nnabla as nn
import nnabla.functions as F
import nnabla.parametric_functions as NPF
import numpy as np

import nnabla_dqa as dqa
import nnabla_dqa.parametric_functions as PF
from benchmarks.bench.plan import BITS
from benchmarks.step_time import Net
from nnabla_dqa._util.devices import in_float32
from nnabla_dqa.backends import mixture
from nnabla_dqa.backends.dispatch import mixture_with_attention
from nnabla_dqa.layers.scopes import make_mixture
from nnabla_dqa.layers.tensors import Mixture
from nnabla_dqa.models import build


def make_net(
    method: str,
    model: str,
    width: float,
    batch: int,
    channel_last: bool = False,
    layers: str = "nnabla",
) -> Net:
    """A net with its solver.

    Args:
        method: ``"float"``; ``"own"``: NNabla's min-max quantized layers with
            their one quantizer of 2 bits; ``"plain"``: MinMax(2), fused;
            ``"fused"`` or ``"portable"``, and K if it is not 3; ``"w+a"``: fused, with
            mixtures of :func:`activations` too.
        model: One of ``nnabla_dqa.models.MODELS``.
        width: Of the model.
        batch: Images.
        channel_last: GPUs only.
        layers: What computes them: ``"nnabla"`` or ``"onednn"``.
    """
    net = _made(method, model, width, batch, channel_last)
    if layers == "onednn":
        with dqa.backend(layers="onednn"):
            dqa.accelerate(net.loss)
        net.release = dqa.release_mixtures(net.loss)
    return net


def _made(method: str, model: str, width: float, batch: int, channel_last: bool) -> Net:
    arguments = argparse.Namespace(model=model, width=width, batch=batch, channel_last=channel_last)
    name, _, count = method.partition(" ")
    if name == "float":
        return Net(None, arguments)
    if name == "own":
        with own_layers():
            return Net(None, arguments)
    if name == "plain":
        name, count = "fused", "1"
    with quiet():
        if name == "w+a":
            with dqa.quantizers(*min_max(3).quantizers, activations=activations()):
                return Net(min_max(3), arguments, "fused")
        return Net(min_max(int(count or 3)), arguments, name)


def min_max(count: int) -> Mixture:
    """``count`` min-max quantizers."""
    return make_mixture(*(dqa.MinMax(bits) for bits in BITS[count]))


def activations() -> List[dqa.EMAMinMax]:
    """What quantizes the activations: three of one running range."""
    return [dqa.EMAMinMax(bits) for bits in BITS[3]]


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Attention between two quantizers warns that it does not learn; here that is meant."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", dqa.AttentionWarning)
        yield


@contextlib.contextmanager
def own_layers() -> Iterator[None]:
    """The models' float layers are NNabla's min-max quantized ones, 2 bits, weights only."""
    options = {"ql_min_w": 0, "ql_max_w": 3, "w_min_max": True, "quantize_b": False}

    def convolution(*args: Any, **kwargs: Any) -> Any:
        return NPF.min_max_quantized_convolution(*args, **options, **kwargs)

    def affine(*args: Any, **kwargs: Any) -> Any:
        return NPF.min_max_quantized_affine(*args, **options, **kwargs)

    with mock.patch.multiple(PF, convolution=convolution, affine=affine):
        yield


def enter(annealer: Optional[dqa.Annealer], phase: str) -> None:
    """Go to the ``"start"`` of the schedule, ``"late"``, its last soft step, or its ``"hard"`` end.

    Late, T is 0.03 and all shares of min-max 2/4/8 but one are below 1e-6.
    """
    if annealer is None:
        return
    soft = annealer.schedule.soft_steps
    annealer.step_array.data = {"start": 0, "late": soft - 1, "hard": soft}[phase]
    annealer.apply()


class Mixtures:
    """The mixtures of all layers of a net, without the net.

    Args:
        model: One of ``nnabla_dqa.models.MODELS``.
        width: Of the model.
        count: K; 0 for NNabla's own quantizer, one of 2 bits.
        channel_last: GPUs only.
        like: Mixtures of the same net, whose weights and gradients are used.
    """

    def __init__(
        self,
        model: str,
        width: float,
        count: int,
        channel_last: bool = False,
        like: Optional[Mixtures] = None,
    ) -> None:
        self.scope: Dict[str, Any] = {}
        self.annealer = None
        size = int(model.rsplit("_", 1)[1])
        x = nn.Variable((1, size, size, 3) if channel_last else (1, 3, size, size))
        rng = np.random.RandomState(0)
        with nn.parameter_scope("", self.scope), nn.auto_forward(False), quiet():
            build(model, x, 10, True, min_max(count or 1), width, channel_last, rng=rng)
            if count > 1:
                schedule = dqa.TemperatureSchedule(steps=1_000_000)
                self.annealer = dqa.Annealer(schedule, restart=True)
            self.layers = dqa.find_quantized()
        self.trained = [v for e in self.layers for v in (e.weight, *e.learned().values())]
        self.smallest = min((e.weight for e in self.layers), key=lambda w: w.size)
        if like is None:
            self.gradients = [
                nn.NdArray.from_numpy_array(rng.randn(*e.weight.shape).astype(np.float32))
                for e in self.layers
            ]
        else:
            self.gradients = like.gradients
            for e, other in zip(self.layers, like.layers):
                e.weight.data, e.weight.grad = other.weight.data, other.weight.grad
        self.graphs: Dict[str, List[Any]] = {}

    @property
    def weights(self) -> int:
        """How many."""
        return int(sum(layer.weight.size for layer in self.layers))

    def build(self, backend: str) -> None:
        """The graphs by ``"fused"``, ``"portable"`` or ``"own"``, for :meth:`update`."""
        if backend == "own":
            with nn.auto_forward(False):
                self.graphs[backend] = [own_quantizer(e.weight) for e in self.layers]
            return
        with nn.auto_forward(False), in_float32(), dqa.backend(backend):
            self.graphs[backend] = [_mixed(layer) for layer in self.layers]

    def update(self, backend: str, phase: str = "start") -> None:
        """Forward of all layers, then backward of all, as in an update of the net."""
        graphs = self.graphs[backend]
        for v in self.trained:
            v.grad.zero()
        for q in graphs:
            q.forward(clear_no_need_grad=True)
        for q, gradient in zip(reversed(graphs), reversed(self.gradients)):
            q.backward(gradient, clear_buffer=True)
        # A GPU has finished when a gradient can be read.
        self.smallest.grad.get_data("r")


def _mixed(layer: Any) -> Any:
    """As a layer mixes its weights when it is built."""
    attended = mixture_with_attention(layer.weight, layer.mixture, layer.state)
    if attended is not None:
        return attended[0]
    a = layer.mixture.coefficients(layer.state)
    least = layer.mixture.mixing.prune_below
    return mixture(layer.weight, layer.mixture.quantizers, a, least)


def own_quantizer(w: Any) -> Any:
    """``F.min_max_quantize`` with 2 bits and the range of ``w``."""
    limits = [
        nn.Variable.from_numpy_array(np.full((1,) * w.ndim, value, np.float32))
        for value in (-1, 1, 0, 3)
    ]
    return F.min_max_quantize(w, *limits, x_min_max=True)
