"""The layers of a scope, looked for again only where the scope has changed."""

from __future__ import annotations

from operator import is_
from typing import Any, List

from nnabla_dqa.layers.tensors import QuantizedTensor, find_quantized


class KnownLayers:
    """:func:`nnabla_dqa.layers.tensors.find_quantized` for someone who asks at every update.

    The same list as before means that the scope has the same parameters as before.

    Args:
        scope: The dictionary of a parameter scope.
    """

    def __init__(self, scope: Any) -> None:
        self._scope = scope
        self._content: List[Any] = []
        self._layers: List[QuantizedTensor] = []

    def __call__(self) -> List[QuantizedTensor]:
        """The quantized layers.

        Raises:
            ValueError: As of ``find_quantized``.
        """
        content: List[Any] = []
        _collect(self._scope, content)
        # The objects are kept, so that another one cannot be in the place of one of them.
        if len(content) != len(self._content) or not all(map(is_, content, self._content)):
            self._layers = find_quantized(self._scope)
            self._content = content
        return self._layers


def _collect(scope: Any, found: List[Any]) -> None:
    """All scopes and variables below ``scope``."""
    children = scope.values()
    found += children
    for child in children:
        if isinstance(child, dict):
            _collect(child, found)
