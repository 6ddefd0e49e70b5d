"""Giving mixed weights back as soon as they have been used."""

from __future__ import annotations

from typing import Any, Callable, Dict, List, Optional

import nnabla as nn

from nnabla_dqa.backends.fused import quantizers_of


def release_mixtures(loss: nn.Variable, least: int = 2**20) -> Optional[Callable[[Any], None]]:
    """A hook for ``backward`` that frees each layer's mixed weights once they have been used.

    NNabla goes back through the mixtures last, and keeps until then the mixed
    weights of all layers and their gradients: two buffers of the weights'
    size. With the hook a layer's mixed weights go when its gradient comes, so
    that it is one::

        release = dqa.release_mixtures(loss)        # once
        loss.forward(clear_no_need_grad=True)       # for each update
        loss.backward(clear_buffer=True, function_post_hook=release)

    Args:
        loss: From which ``backward`` starts, always with ``clear_buffer=True``.
            Another graph over the same mixed variables must not be gone back
            through afterwards.
        least: With fewer mixed weights than this in all there is no hook:
            memory is little then, and NNabla calls it after every function.

    Returns:
        The hook, or None, which ``backward`` takes too. Mixtures of standard
        functions, persistent variables and everything else are left to NNabla.

    Examples:
        >>> import nnabla as nn, nnabla.functions as F, nnabla.solvers as S
        >>> import numpy as np
        >>> import nnabla_dqa as dqa
        >>> import nnabla_dqa.parametric_functions as PF
        >>> x = nn.Variable.from_numpy_array(np.random.RandomState(0).randn(8, 16))
        >>> with dqa.quantizers(dqa.MinMax(2), dqa.MinMax(4), dqa.MinMax(8)):
        ...     y = PF.dqa_affine(x, 4, name="fc")
        >>> loss = F.mean(y**2)
        >>> release = dqa.release_mixtures(loss)
        >>> loss.forward(clear_no_need_grad=True)
        >>> loss.backward(clear_buffer=True, function_post_hook=release)
    """
    users: Dict[nn.Variable, List[Any]] = {}

    def visit(function: Any) -> None:
        if quantizers_of(function) is not None:
            users[function.outputs[0]] = []
        for v in function.inputs:
            if v in users and function not in users[v]:
                users[v].append(function)

    loss.visit(visit)
    if sum(q.size for q in users) < least:
        return None
    after: Dict[Any, List[nn.Variable]] = {}
    for q, functions in users.items():
        if not functions:
            continue
        # Backward goes by falling rank. Of several at the end none is known to be the last.
        lowest = min(function.rank for function in functions)
        last = [function for function in functions if function.rank == lowest]
        if len(last) == 1:
            after.setdefault(last[0], []).append(q)
    return _Release(after)


class _Release:
    def __init__(self, after: Dict[Any, List[nn.Variable]]) -> None:
        self._after = after

    def __call__(self, function: Any) -> None:
        for q in self._after.get(function, ()):
            if not q.persistent:
                q.data.clear()
