"""One of several choices for each of many items, of the highest value within a capacity."""

from __future__ import annotations

from typing import List, NamedTuple, Optional, Sequence, Tuple

import numpy as np

_HALVINGS = 100
_SLACK = 1e-9
"""Relative: sums of the same numbers in another order differ by less."""


def best_choices(
    values: Sequence[Sequence[float]], sizes: Sequence[Sequence[int]], capacity: int
) -> Optional[List[int]]:
    """``argmax_c sum_l values[l][c_l]`` subject to ``sum_l sizes[l][c_l] <= capacity``, exactly.

    The multiple-choice knapsack by dynamic programming over the items. Kept are the partial sums
    that no other one equals or betters in size and value, and of these the ones that can still
    become the best: a bound by Lagrange's multiplier tells (Nemhauser and Ullmann 1969;
    Sinha and Zoltners 1979).

    Args:
        values: Finite numbers: a row for each item, a number for each of its choices.
        sizes: Likewise, whole numbers >= 0.
        capacity: Of all together.

    Returns:
        The index of a choice for each item, None if the smallest ones are too large. Of equal
        values the smallest, and the same one each time.
    """
    items = [_Item.of(v, s) for v, s in zip(values, sizes)]
    if sum(int(item.sizes.min()) for item in items) > capacity:
        return None
    multiplier, known = _relaxed(items, capacity)
    enough = known - _SLACK * (1 + abs(known))
    # What the items from each one on need at least, and can add at most, by the relaxed problem.
    least = _from_behind([int(item.sizes.min()) for item in items])
    most = _from_behind([float(item.less(multiplier).max()) for item in items])
    states = _States(np.zeros(1, np.int64), np.zeros(1))
    steps: List[Tuple[np.ndarray, np.ndarray]] = []
    for item, room, bound in zip(items, least[1:], most[1:]):
        size = (states.sizes[:, None] + item.sizes).ravel()
        value = (states.values[:, None] + item.values).ravel()
        hope = value + bound + multiplier * (capacity - size)
        kept = np.flatnonzero((size + room <= capacity) & (hope >= enough))
        kept = kept[_undominated(size[kept], value[kept])]
        steps.append((kept // item.sizes.size, kept % item.sizes.size))
        states = _States(size[kept], value[kept])
    # Sizes and values rise together, so the last one has the highest value.
    chosen, at = [], states.sizes.size - 1
    for before, choice in reversed(steps):
        chosen.append(int(choice[at]))
        at = int(before[at])
    return chosen[::-1]


class _Item(NamedTuple):
    values: np.ndarray
    sizes: np.ndarray

    @classmethod
    def of(cls, values: Sequence[float], sizes: Sequence[int]) -> _Item:
        return cls(np.asarray(values, np.float64), np.asarray(sizes, np.int64))

    def less(self, multiplier: float) -> np.ndarray:
        """The values, less what their sizes cost."""
        less: np.ndarray = self.values - multiplier * self.sizes
        return less

    def at(self, multiplier: float) -> int:
        """The best choice at this cost; the smallest of equal ones."""
        less = self.less(multiplier)
        return int(np.lexsort((self.sizes, -less))[0])


class _States(NamedTuple):
    sizes: np.ndarray
    values: np.ndarray


def _relaxed(items: Sequence[_Item], capacity: int) -> Tuple[float, float]:
    """A multiplier, and the value of choices that fit and are the best ones at its cost."""

    def tried(multiplier: float) -> Tuple[int, float]:
        chosen = [item.at(multiplier) for item in items]
        size = sum(int(item.sizes[k]) for item, k in zip(items, chosen))
        return size, sum(float(item.values[k]) for item, k in zip(items, chosen))

    size, value = tried(0.0)
    if size <= capacity:
        return 0.0, value
    # With a byte dearer than all values together, each item's smallest choice is its best.
    low, high = 0.0, 1.0 + sum(float(np.ptp(item.values)) for item in items)
    best = tried(high)[1]
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        size, value = tried(middle)
        if size <= capacity:
            high, best = middle, value
        else:
            low = middle
    return high, best


def _from_behind(numbers: Sequence[float]) -> List[float]:
    """The sums of the numbers from each one on; 0 behind the last."""
    sums = [0.0]
    for number in reversed(numbers):
        sums.append(sums[-1] + number)
    return sums[::-1]


def _undominated(sizes: np.ndarray, values: np.ndarray) -> np.ndarray:
    """The indices, by size, of what has a higher value than all that is not larger."""
    order = np.lexsort((-values, sizes))
    ranked = values[order]
    before = np.maximum.accumulate(np.concatenate([[-np.inf], ranked[:-1]]))
    found: np.ndarray = order[ranked > before]
    return found
