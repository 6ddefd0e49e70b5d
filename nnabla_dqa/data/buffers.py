"""Memory of mini-batches, used again."""

from __future__ import annotations

import sys
import threading
from typing import List, Tuple

import numpy as np

KEPT = 6
"""Arrays that are kept at most: what two workers have under way, and one in use."""

# The list of arrays, the loop's variable and the argument of getrefcount itself.
_OWN_REFERENCES = 3


class Buffers:
    """float32 arrays for mini-batches; one that nobody holds any more is given out again.

    A mini-batch of photos is so large that the system hands out its memory anew,
    and zeroed, each time, which takes about as long as filling it. What is given out
    is a view. NumPy's views refer to the array that owns the memory, so that its
    reference count tells whether a view of any part of it is still alive.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._arrays: List[np.ndarray] = []

    def take(self, shape: Tuple[int, ...]) -> np.ndarray:
        """An array of any content, which stays the caller's as long as it or a view lives."""
        with self._lock:
            for array in self._arrays:
                if array.shape == shape and sys.getrefcount(array) == _OWN_REFERENCES:
                    return array.view()
            fresh = np.empty(shape, np.float32)
            if len(self._arrays) == KEPT:
                # The oldest, perhaps of another shape; whoever holds it keeps it.
                del self._arrays[0]
            self._arrays.append(fresh)
            return fresh.view()
