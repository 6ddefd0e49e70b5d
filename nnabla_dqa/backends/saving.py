"""Saving a graph that holds fused mixtures: the file gets the portable graph.

NNabla writes a function made in Python into an NNP without an error, and no
NNabla can load it again. Everything that writes a graph, NNabla's ``save`` and
``create_graph_from_variable`` included, walks over it with one class of
NNabla's, which learns here to walk over the portable graph instead.
"""

from __future__ import annotations

import functools
from typing import Any

import nnabla as nn
from nnabla.core import graph_def

from nnabla_dqa.backends import portable
from nnabla_dqa.backends.fused import quantizers_of


def teach_nnabla() -> None:
    """Let NNabla write fused mixtures as portable graphs. A second call does nothing."""
    generator = graph_def.ProtoGraphGenerator
    write = generator.__call__
    if hasattr(write, "__wrapped__"):
        return

    @functools.wraps(write)
    def write_portable(self: Any, function: Any) -> None:
        quantizers = quantizers_of(function)
        if quantizers is None:
            write(self, function)
            return
        given = function.inputs
        inputs = [_end(v) for v in given]
        with nn.context_scope(function.context), nn.auto_forward(False):
            q = portable.mixture(inputs[0], quantizers, inputs[1] if inputs[1:] else None)
        q.data = function.outputs[0].data
        q.visit(functools.partial(write, self))
        # In auto-forward mode NNabla frees what the last variable of a graph leaves behind, and
        # these arrays are still the live graph's.
        q.data = nn.NdArray(q.shape)
        for leaf, v in zip(inputs, given):
            if v.parent is not None:
                leaf.data = nn.NdArray(v.shape)

    generator.__call__ = write_portable


def _end(v: nn.Variable) -> nn.Variable:
    """A variable at which the walk over the portable graph ends: it has been there before."""
    if v.parent is None:
        # NNabla's save registers the parameters that it meets, so it has to be this one.
        return v
    leaf = nn.Variable(v.shape)
    # By their arrays NNabla tells variables apart.
    leaf.data = v.data
    return leaf
