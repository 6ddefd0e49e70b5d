"""The coefficients that graphs compute already, for those who need them too.

A graph that mixes a layer's weights reads the layer's ``hard`` by a leaf variable
of its own. Those leaves are kept here; they hold no more than their array, and
NNabla knows which functions that still exist use them.
"""

from __future__ import annotations

import weakref
from typing import Any, Dict, Iterator, List, Optional

import nnabla as nn
from nnabla.core.graph_def import current_graph_builder

from nnabla_dqa.layers.tensors import QuantizedTensor
from nnabla_dqa.mixing.mixture import HARD
from nnabla_dqa.quantization.graph_ops import Variable

_LEAVES: Dict[Any, List[Variable]] = {}
"""By the array of ``hard``, in building order."""
_RECORDED: Dict[Any, weakref.ref[Any]] = {}
"""Likewise, the coefficients in the graph definition that was recorded last."""
_FEW = 64


def note_build(hard: Variable, leaf: Variable, coefficients: Optional[Variable]) -> None:
    """Keep in mind that a graph computes the coefficients of a layer.

    Args:
        hard: The layer's.
        leaf: By which the graph reads it.
        coefficients: Where a graph definition is recorded, what computes them.
    """
    if isinstance(coefficients, nn.ProtoVariable):
        _RECORDED[hard.data] = weakref.ref(coefficients)
        return
    if len(_LEAVES) >= _FEW and hard.data not in _LEAVES:
        _forget()
    known = [v for v in _LEAVES.get(hard.data, ()) if v.function_references]
    _LEAVES[hard.data] = [*known, leaf]


def _forget() -> None:
    global _FEW
    for array, leaves in list(_LEAVES.items()):
        if not any(v.function_references for v in leaves):
            del _LEAVES[array]
    _FEW = 2 * len(_LEAVES) + 64


def built_coefficients(layer: QuantizedTensor) -> Optional[Variable]:
    """The coefficients of shape (1, K) that a graph of this layer computes, None without one.

    They depend on the layer's state alone, so those of any graph have the same
    values and gradients. The one that was built last is taken, but rather one for
    training than one that normalizes by running statistics: its
    mixture is computed anyway. While a graph definition is recorded it is that one.

    In auto-forward mode there is none: what was computed earlier may be out of date.
    """
    array = layer.state[HARD].data
    if current_graph_builder().is_dirty():
        found = _RECORDED.get(array, lambda: None)()
        network = current_graph_builder().get_current()
        return found if found is not None and _is_in(found, network) else None
    if nn.get_auto_forward():
        return None
    learned = any(v.need_grad for v in layer.learned("attention").values())
    graphs = [a for leaf in _LEAVES.get(array, ()) for a in _computed(leaf)]
    graphs = [a for a in graphs if a.need_grad == learned]
    training = [a for a in graphs if not _is_evaluated(a)]
    return (training or graphs or [None])[-1]


def _is_in(variable: Any, network: Any) -> bool:
    return network.variables.get(variable.name) is variable


def _computed(leaf: Variable) -> Iterator[Variable]:
    """The sum ``(1 - sum(hard)) * rule + hard`` above ``leaf``; see ``Mixture.coefficients``."""
    for shaped in leaf.function_references:
        for function in shaped.outputs[0].function_references:
            if function.info.type_name == "Add2":
                yield function.outputs[0]


def _is_evaluated(v: Variable) -> bool:
    """Whether the next normalization that uses ``v`` is one by running statistics."""
    waiting, seen = [v], {v}
    for current in waiting:
        for function in current.function_references:
            moving = function.info.args.get("batch_stat")
            if moving is not None:
                return not moving
            new = [output for output in function.outputs if output not in seen]
            seen.update(new)
            waiting += new
    return False
