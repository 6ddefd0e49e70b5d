"""Whether oneDNN computes the layers of the package's own trainings and evaluations."""

from __future__ import annotations

from typing import List, Sequence

import nnabla as nn

from nnabla_dqa._util.warn import warn
from nnabla_dqa.backends.select import BackendWarning, current_layers, device_of
from nnabla_dqa.onednn.accelerate import accelerated
from nnabla_dqa.onednn.library import OneDnnError, describe, why_not


def fast(outputs: Sequence[nn.Variable], trains: bool) -> List[nn.Variable]:
    """The same variables of a graph that oneDNN computes, where it is chosen and can.

    Args:
        outputs: Where the graph ends, and what is looked at within it. They share their arrays
            with what is returned.
        trains: Whether there will be a backward pass.

    Raises:
        OneDnnError: oneDNN was asked for by name and cannot be used.

    Warns:
        BackendWarning: It is there and cannot compute this graph.
    """
    given = list(outputs)
    chosen = current_layers()
    if chosen == "nnabla":
        return given
    reason = why_nnabla(nn.get_current_context())
    if not reason:
        try:
            return accelerated(given, trains)[0]
        except OneDnnError as error:
            if chosen == "onednn":
                raise
            warn(f"NNabla computes the layers, not oneDNN: {error}", BackendWarning)
            return given
    if chosen == "onednn":
        raise OneDnnError(f"oneDNN cannot be used: {reason}")
    return given


def why_nnabla(context: nn.Context) -> str:
    """Why NNabla computes the layers of a context, in one line; empty if oneDNN does."""
    if current_layers() == "nnabla":
        return "NNabla was chosen"
    if device_of(context) != "cpu":
        return f"the context is {list(context.backend)}"
    if any(backend.endswith("half") for backend in context.backend):
        return "it computes in float32 alone"
    return why_not()


def layers_by(context: nn.Context) -> str:
    """What computes the layers of a context, in a few words, for example for a run's record."""
    reason = why_nnabla(context)
    return f"NNabla: {reason}" if reason else describe()
