"""The coefficients that graphs compute already, for those who need them too."""

from __future__ import annotations

import weakref
from typing import Any, Dict, List

import nnabla as nn
from nnabla.core.graph_def import current_graph_builder

from nnabla_dqa.backends import portable
from nnabla_dqa.backends.fused import NAME as FUSED
from nnabla_dqa.layers.tensors import QuantizedTensor
from nnabla_dqa.mixing.mixture import HARD
from nnabla_dqa.quantization.graph_ops import Variable

_FUSED = (FUSED, portable.FUSED)

_BUILT: Dict[Any, List[Variable]] = {}
"""The coefficients of each layer's graphs in building order, by the array of its ``hard``.

What is kept of a graph that is gone, its mixture's inputs, goes with one of the next builds.
"""
_RECORDED: Dict[Any, weakref.ref[Any]] = {}
"""Likewise, those in the graph definition that was recorded last."""


class _Purge:
    """When all of :data:`_BUILT` was looked at last."""

    notes = 0

    @classmethod
    def due(cls) -> bool:
        cls.notes += 1
        if 2 * cls.notes < len(_BUILT):
            return False
        cls.notes = 0
        return True


def note_build(hard: Variable, coefficients: Variable) -> None:
    """Keep in mind that a graph computes the ``coefficients`` of the layer with this ``hard``."""
    array = hard.data
    if isinstance(coefficients, nn.ProtoVariable):
        _RECORDED[array] = weakref.ref(coefficients, lambda _: _RECORDED.pop(array, None))
        return
    for key in list(_BUILT) if _Purge.due() else [array]:
        _BUILT[key] = [a for a in _BUILT.get(key, ()) if _is_used(a)]
        if not _BUILT[key]:
            del _BUILT[key]
    _BUILT.setdefault(array, []).append(coefficients)


def built_coefficients(layer: QuantizedTensor) -> Variable | None:
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
    graphs = [a for a in _BUILT.get(array, ()) if a.need_grad == learned and _is_used(a)]
    training = [a for a in graphs if not _is_evaluated(a)]
    if not layer.is_weight:
        return _of_activations(graphs)
    found = training or graphs
    return found[-1] if found else None


def _of_activations(graphs: List[Variable]) -> Variable | None:
    """Those that the training graph computes; None where it is not known which one that is.

    A compiled mixture of activations computes them along with the activations, so those of
    another graph would have all of it computed in every update.
    """
    fused = [a for a in graphs if a.parent.info.type_name == portable.FUSED]
    if len(graphs) == 1 or not fused:
        return graphs[-1] if graphs else None
    training = [a for a in fused if _normalizes_by_batch(a.parent.inputs[0])]
    return training[-1] if training else None


def _normalizes_by_batch(v: Variable) -> bool:
    """Whether a normalization on the way to ``v`` is one by the statistics of the batch."""
    waiting, seen = [v], {v}
    for current in waiting:
        if current.parent is None:
            continue
        moving = current.parent.info.args.get("batch_stat")
        if moving is not None:
            return bool(moving)
        new = [u for u in current.parent.inputs if u not in seen]
        seen.update(new)
        waiting += new
    return False


def _is_in(variable: Any, network: Any) -> bool:
    return network.variables.get(variable.name) is variable


def _is_used(a: Variable) -> bool:
    """Whether the mixed weights that they belong to are still part of a graph."""
    if a.parent.info.type_name in _FUSED:
        # NNabla gives the outputs of a function that nobody holds as new variables without it.
        return a.parent.outputs[0].parent is not None
    return bool(a.function_references)


def _is_evaluated(a: Variable) -> bool:
    """Whether the next normalization in the graph of ``a`` is one by running statistics."""
    waiting = list(a.parent.outputs) if a.parent.info.type_name in _FUSED else [a]
    seen = set(waiting)
    for current in waiting:
        for function in current.function_references:
            moving = function.info.args.get("batch_stat")
            if moving is not None:
                return not moving
            new = [output for output in function.outputs if output not in seen]
            seen.update(new)
            waiting += new
    return False
