"""Let oneDNN compute a graph, where it is chosen and can."""

from __future__ import annotations

from typing import List, Sequence

import nnabla as nn

from nnabla_dqa._util.warn import warn
from nnabla_dqa.backends.select import BackendWarning, current_layers, device_of
from nnabla_dqa.onednn.library import OneDnnError, describe, why_not
from nnabla_dqa.onednn.rebuild import Accelerated, rebuild


def accelerate(*outputs: nn.Variable, keep: Sequence[nn.Variable] = ()) -> Accelerated:
    """Let oneDNN compute the layers of a graph on a CPU, forward and backward.

    Convolutions, deconvolutions, affine layers, batch normalization, pooling, activations and
    the mixtures of DQA layers between them become few functions, each computed by all cores.
    All else stays NNabla's. Values and gradients agree with NNabla's to float32's rounding and
    do not depend on the number of threads. Saving the graph writes NNabla's own functions::

        loss = F.mean(F.softmax_cross_entropy(model(x), t))
        dqa.accelerate(loss)            # once, when the graph is complete
        loss.forward(clear_no_need_grad=True)
        loss.backward(clear_buffer=True)

    On a GPU, and where oneDNN is not installed (``pip install 'nnabla_dqa[onednn]'``), it does
    nothing and says so in what it returns; :func:`nnabla_dqa.backend` makes that an error, or
    keeps NNabla's functions.

    Args:
        outputs: Where the graph ends: a loss, or what is evaluated; what functions use already
            is no end. ``forward`` of one of them computes nothing of the others.
        keep: Variables within it whose values are looked at after ``forward``, or their
            gradients after ``backward``. Others inside are not computed any more, unless they
            are persistent.

    Variables that functions use, kept ones among them, share their arrays with the new graph;
    ``forward`` and ``backward`` are for the others, where the graph ends. Shapes and
    ``need_grad`` must not change afterwards. ``nn.grad`` does not pass. Deploy and convert a
    graph before, or one that was built once more for that.

    Raises:
        TypeError: Something given is no variable.
        OneDnnError: ``backend(layers="onednn")`` holds and oneDNN cannot be used; or a function
            behind a layer is written in Python and cannot be built anew.

    Examples:
        >>> import nnabla as nn, nnabla.functions as F, nnabla.solvers as S
        >>> import numpy as np
        >>> import nnabla_dqa as dqa
        >>> import nnabla_dqa.parametric_functions as PF
        >>> x = nn.Variable.from_numpy_array(np.random.RandomState(0).randn(8, 16))
        >>> with dqa.quantizers(dqa.MinMax(2), dqa.MinMax(4), dqa.MinMax(8)):
        ...     y = PF.dqa_affine(x, 4, name="fc")
        >>> loss = F.mean(y**2)
        >>> with dqa.backend(layers="nnabla"):
        ...     dqa.accelerate(loss).reason
        'NNabla was chosen'
    """
    ends = [*outputs, *(keep if isinstance(keep, (list, tuple)) else [keep])]
    for v in ends:
        if not isinstance(v, nn.Variable):
            raise TypeError(f"accelerate takes variables, not {type(v).__name__}")
    reason = why_nnabla(nn.get_current_context())
    if reason:
        if current_layers() == "onednn":
            raise OneDnnError(f"oneDNN cannot be used: {reason}")
        return Accelerated(0, 0, {}, reason)
    return rebuild(ends, trains=True, in_place=True, summed=ends[len(outputs) :])[1]


def fast(outputs: Sequence[nn.Variable], trains: bool) -> List[nn.Variable]:
    """:func:`accelerate` for the package's own graphs; the given one stays as it is.

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
            return rebuild(given, trains, in_place=False)[0]
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
