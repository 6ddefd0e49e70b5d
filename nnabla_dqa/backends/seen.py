"""Arrays whose numbers were seen to be finite where they were computed with: nobody looks again."""

from __future__ import annotations

import weakref
from typing import Any, Sequence, Tuple

_seen: weakref.WeakKeyDictionary[Any, Sequence[Any]] = weakref.WeakKeyDictionary()


def note_finite(owner: Any, variables: Sequence[Any]) -> None:
    """Keep in mind that what is in ``variables`` is finite; what ``owner`` noted is forgotten."""
    _seen[owner] = variables


def take_finite() -> Tuple[Sequence[Any], ...]:
    """All that was noted since the last call: the sequences that were given."""
    noted = tuple(_seen.values())
    _seen.clear()
    return noted
