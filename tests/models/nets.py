"""What the tests of the models share."""

from __future__ import annotations

import nnabla as nn
import numpy as np


def images(batch=2, size=16, channel_last=False, seed=0):
    shape = (batch, size, size, 3) if channel_last else (batch, 3, size, size)
    values = np.random.RandomState(seed).randn(*shape).astype(np.float32)
    return nn.Variable.from_numpy_array(values)


def functions(y):
    found = []
    y.visit(found.append)
    return found


def multiplications(y, batch):
    """Of convolutions and affine layers, for one image."""
    total = 0
    for f in functions(y):
        if f.info.type_name in ("Convolution", "Affine"):
            w = f.inputs[1]
            maps = w.shape[0] if f.info.type_name == "Convolution" else w.shape[1]
            total += f.outputs[0].size // batch * (w.size // maps)
    return total


def last_pooling(y):
    return [f for f in functions(y) if f.info.type_name == "AveragePooling"][-1]
