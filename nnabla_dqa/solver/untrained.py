"""Whether a training begins with a trained network, for quantizers that need one."""

from __future__ import annotations

from typing import Any, List

import nnabla as nn
import numpy as np

from nnabla_dqa._util.warn import warn
from nnabla_dqa.layers.tensors import QuantizedTensor, state_paths


class UntrainedWarning(UserWarning):
    """A quantizer that needs a trained float network is trained from random weights."""


def looks_untrained(scope: Any) -> bool:
    """Whether no bias, scale or shift of a network has left its first value.

    Layers begin with biases, shifts and scales that are one number throughout, and training
    makes them differ. Of a network without any, or with random ones, it cannot be told: False.

    Args:
        scope: The dictionary of a parameter scope.
    """
    with nn.parameter_scope("", scope):
        parameters = nn.get_parameters()
    for name in state_paths(parameters):
        del parameters[name]
    vectors = [v.d for v in parameters.values() if 1 < v.size == max(v.shape)]
    return bool(vectors) and all(np.ptp(array) == 0 for array in vectors)


def warn_untrained(scope: Any, layers: List[QuantizedTensor]) -> None:
    """Warn once if a quantizer of the layers needs trained weights and these are not."""
    for layer in layers:
        needy = [q for q in layer.mixture.quantizers if q.needs_trained_weights]
        if needy and looks_untrained(scope):
            warn(
                f"layer {layer.name} has {type(needy[0]).__name__}, which needs a trained float "
                f"network to begin with, and no bias or normalization here has been trained; load "
                f"the weights of a float training before attaching the solver",
                UntrainedWarning,
            )
            return
