"""Mixtures of activations with state, for tests of what computes them."""

from __future__ import annotations

import nnabla as nn
import numpy as np

import nnabla_dqa as dqa
from nnabla_dqa.mixing import Attention
from nnabla_dqa.mixing.mixture import Mixture
from nnabla_dqa.mixing.single import Single

RNG = np.random.RandomState
SETS = {
    "minmax": [dqa.EMAMinMax(2), dqa.EMAMinMax(4), dqa.EMAMinMax(8)],
    "pact": [dqa.PACT(2), dqa.PACT(4), dqa.PACT(8)],
    "pact from a number": [dqa.PACT(2, initial=1.5), dqa.PACT(3, initial=1.5)],
    "lsq": [dqa.LSQ(2), dqa.LSQ(4), dqa.LSQ(8)],
    "lsq after a ReLU": [dqa.LSQ(bits, signed=False) for bits in (2, 4, 8)],
    "lsq with an offset": [dqa.LSQ(2, offset=True), dqa.LSQ(4, offset=True)],
    "binary": [dqa.Sign(), dqa.LSQ(4), dqa.FullPrecision()],
    "mixed": [dqa.EMAMinMax(2), dqa.PACT(4), dqa.LSQ(8), dqa.FullPrecision()],
}


def state_of(mixture, shape, values=None):
    """A layer's arrays by their paths, with these values."""
    state = {}
    for path, entry in mixture.state_layout(shape, "activation").items():
        array = np.array((values or {}).get(path, entry.initial), np.float32)
        array = array.reshape(entry.initial.shape)
        state[path] = nn.Variable.from_numpy_array(array, need_grad=entry.kind != "schedule")
    return state


def known(seed, mixture, shape):
    """Values of all arrays, as a training leaves them; some are negative or below zero."""
    r, values = RNG(seed), {}
    for path, entry in mixture.state_layout(shape, "activation").items():
        name = path.rpartition("/")[2]
        if name == "range":
            values[path] = [r.uniform(-1.5, -0.1), r.uniform(0.1, 2), 1]
        elif name == "first":
            values[path] = np.ones(entry.initial.shape)
        elif name in ("clip", "step"):
            values[path] = r.uniform(0.05, 1.5) * r.choice([1, 1, -1])
        elif name == "offset":
            values[path] = r.uniform(-0.5, 0.5)
        elif name == "alpha":
            values[path] = r.uniform(0, 1, entry.initial.shape)
        elif name == "temperature":
            values[path] = [0.7]
    return values


def mixture_of(quantizers, mixing=None):
    """Sorted by bits, as a mixture wants them."""
    given = sorted(quantizers, key=lambda q: q.bits)
    return Mixture(tuple(given), mixing or (Attention() if len(given) > 1 else Single()))


def data(seed, shape, relu=False):
    x = RNG(seed).randn(*shape).astype(np.float32)
    return np.maximum(x, 0) if relu else x
