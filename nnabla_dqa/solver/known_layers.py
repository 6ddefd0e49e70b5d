"""The layers of a scope, looked for again only where the scope has changed."""

from __future__ import annotations

from operator import is_
from typing import Any, Iterator, List

from nnabla_dqa.layers.tensors import QuantizedTensor, find_quantized


class KnownLayers:
    """:func:`nnabla_dqa.layers.tensors.find_quantized` for someone who asks at every update.

    The same list as before means that the scope has the same parameters as before.

    Args:
        scope: The dictionary of a parameter scope.
    """

    def __init__(self, scope: Any) -> None:
        self._scope = scope
        self._scopes: List[Any] = [scope]
        self._content: List[Any] = []
        self._layers: List[QuantizedTensor] = []

    def __call__(self) -> List[QuantizedTensor]:
        """The quantized layers.

        Raises:
            ValueError: As of ``find_quantized``.
        """
        # With the same in each scope as before, there are the same scopes.
        content = _content(self._scopes)
        # The objects are kept, so that another one cannot be in the place of one of them.
        if len(content) != len(self._content) or not all(map(is_, content, self._content)):
            self._layers = find_quantized(self._scope)
            self._scopes = list(_scopes(self._scope))
            self._content = _content(self._scopes)
        return self._layers


def _content(scopes: List[Any]) -> List[Any]:
    content: List[Any] = []
    for scope in scopes:
        # NNabla's are OrderedDicts, whose own `values` looks each key up.
        content += dict.values(scope)
    return content


def _scopes(scope: Any) -> Iterator[Any]:
    """``scope`` and all scopes below it."""
    yield scope
    for child in scope.values():
        if isinstance(child, dict):
            yield from _scopes(child)
