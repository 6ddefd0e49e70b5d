"""Where NaN or infinity came from."""

from __future__ import annotations

from typing import Any, Dict, List, Mapping

import numpy as np

from nnabla_dqa.layers.tensors import STATE_SCOPE, layer_name
from nnabla_dqa.quantization.graph_ops import Variable


def first_non_finite(loss: Variable, parameters: Mapping[str, Variable]) -> str:
    """The first place of a graph where a number is NaN or infinite, in words.

    The graph is computed once more, so running statistics move on; call it
    when the training is over.

    Args:
        loss: The end of the graph, filled with the mini-batch in question.
        parameters: By name, as messages shall call them.

    Returns:
        Such as ``"layer conv3/conv"``, ``"parameter fc/affine/b"``, ``"the
        mini-batch"`` or ``"the loss"``.
    """
    names = {v.data: name for name, v in parameters.items()}
    owners: Dict[Any, str] = {}
    found: List[str] = []

    def owner(function: Any) -> str:
        """The layer of the last parameter on the way to ``function``."""
        for v in function.inputs:
            if v.parent is None and v.data in names:
                return layer_name(names[v.data].partition(f"/{STATE_SCOPE}/")[0])
        above = (owners.get(v.parent) for v in function.inputs if v.parent is not None)
        return next((name for name in above if name), "")

    def look(function: Any) -> None:
        if found:
            return
        owners[function] = owner(function)
        for v in function.inputs:
            if v.parent is None and not np.isfinite(v.d).all():
                name = names.get(v.data)
                found.append(f"parameter {name}" if name else "the mini-batch")
                return
        if not all(np.isfinite(v.d).all() for v in function.outputs):
            found.append(f"layer {owners[function]}" if owners[function] else function.name)

    loss.forward(function_post_hook=look)
    return found[0] if found else "the loss"
