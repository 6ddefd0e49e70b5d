"""What attention did during a training, for pictures and for JSON."""

from __future__ import annotations

import dataclasses
from typing import Any, Dict, List, Optional, Tuple

import numpy as np

from nnabla_dqa.layers.report import short_names
from nnabla_dqa.layers.tensors import find_quantized


@dataclasses.dataclass
class Curve:
    """The weights of a layer and what the mixture makes of them at one step, sorted by weight."""

    step: int
    weights: np.ndarray
    mixed: np.ndarray


@dataclasses.dataclass
class AttentionHistory:
    """Attention in use of every layer of a scope that mixes quantizers, over a training.

    Call :meth:`record` as often as the picture shall have points. ``curves``
    holds the effective quantization of the first such layer at the steps for
    which it was asked. Layers with one quantizer, or with another set than the
    first, are left out.

    Args:
        scope: The parameter scope; default: the current one at each call.
    """

    scope: Any = None
    steps: List[int] = dataclasses.field(default_factory=list)
    attention: Dict[str, List[Tuple[float, ...]]] = dataclasses.field(default_factory=dict)
    temperatures: List[Optional[float]] = dataclasses.field(default_factory=list)
    quantizers: Tuple[str, ...] = ()
    curves: List[Curve] = dataclasses.field(default_factory=list)

    def record(self, step: int, curve: bool = False) -> None:
        """Note the present attention, and with ``curve`` the first layer's weights too.

        Raises:
            ValueError: No layer in the scope mixes quantizers.
        """
        layers = [layer for layer in find_quantized(self.scope) if layer.mixture.is_mixed]
        if not layers:
            raise ValueError("AttentionHistory: no layer in the parameter scope mixes quantizers")
        first = layers[0]
        self.quantizers = short_names(first.mixture)
        self.steps.append(step)
        for layer in layers:
            if layer.mixture.quantizers != first.mixture.quantizers:
                continue
            values = tuple(float(a) for a in layer.coefficients())
            self.attention.setdefault(layer.name, []).append(values)
        temperature = first.state.get("temperature")
        self.temperatures.append(None if temperature is None else float(temperature.d[0]))
        if curve and first.is_weight:
            w = first.weight.d.ravel()
            order = np.argsort(w)
            mixed = first.mixed_weights().ravel()
            self.curves.append(Curve(step, w[order].copy(), mixed[order].copy()))
