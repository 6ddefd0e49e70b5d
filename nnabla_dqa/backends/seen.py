"""Arrays whose numbers were seen to be finite where they were computed with: nobody looks again."""

from __future__ import annotations

import weakref
from typing import Any, List, Set

import nnabla as nn

_seen: weakref.WeakKeyDictionary[Any, List[nn.NdArray]] = weakref.WeakKeyDictionary()


def note_finite(owner: Any, arrays: List[nn.NdArray]) -> None:
    """Keep in mind that ``arrays`` are finite; what ``owner`` noted before is forgotten."""
    _seen[owner] = arrays


def take_finite() -> Set[nn.NdArray]:
    """All that was noted since the last call."""
    arrays = {array for noted in _seen.values() for array in noted}
    _seen.clear()
    return arrays
