"""The gradient of the fused mixture as a graph, for ``nn.grad``."""

from __future__ import annotations

import functools
from typing import Any, List, Sequence

import nnabla as nn
import nnabla.functions as F
from nnabla.backward_functions import registry

from nnabla_dqa.backends import portable
from nnabla_dqa.quantization import Quantizer
from nnabla_dqa.quantization.graph_ops import detach


def register_gradient(name: str, quantizers: Sequence[Quantizer]) -> None:
    """Let ``nn.grad`` pass fused mixtures of this name."""
    if name not in registry:
        registry[name] = functools.partial(_gradient, tuple(quantizers))


def _gradient(
    quantizers: Sequence[Quantizer],
    grad_inputs: List[nn.Variable],
    inputs: List[nn.Variable],
    input_shapes: Any,
    outputs: Any,
    output_shapes: Any,
) -> List[nn.Variable]:
    """``dL/dw = dL/dq`` and ``dL/da_k = <dL/dq, Q_k(w)>``; Q itself has no gradient here."""
    (dq,) = grad_inputs
    if len(quantizers) == 1:
        return [dq]
    w = detach(inputs[0])
    parts = [F.sum(F.mul2(dq, portable.mixture(w, [q], None))) for q in quantizers]
    return [dq, F.concatenate(*[F.reshape(part, (1, 1)) for part in parts], axis=1)]
