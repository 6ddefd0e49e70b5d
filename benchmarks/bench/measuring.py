"""Calls that take turns, and what their times come to."""

from __future__ import annotations

import statistics
import time
from typing import Any, Callable, Dict, Hashable, List, Mapping, Sequence, TypeVar

Figures = Dict[str, float]
"""``median``, ``low``, ``high`` and the number of ``runs``."""

Key = TypeVar("Key", bound=Hashable)
Value = TypeVar("Value")


def clock(call: Callable[[], Any]) -> float:
    """Milliseconds that ``call`` takes."""
    start = time.perf_counter()
    call()
    return 1000 * (time.perf_counter() - start)


def take_turns(
    calls: Mapping[Key, Callable[[], Value]], rounds: int, warm_up: int = 1
) -> Dict[Key, List[Value]]:
    """What each call returns, ``rounds`` times, by its name.

    The calls take turns, every other round in the opposite order, so that a
    machine that gets slower or faster does so for all of them.

    Args:
        calls: Each returns its own time.
        rounds: Those that count.
        warm_up: Rounds before them.
    """
    results: Dict[Key, List[Value]] = {name: [] for name in calls}
    for i in range(-warm_up, rounds):
        names = list(calls) if i % 2 == 0 else list(calls)[::-1]
        for name in names:
            value = calls[name]()
            if i >= 0:
                results[name].append(value)
    return results


def summary(values: Sequence[float]) -> Figures:
    """Median and spread of some times, to four digits."""
    figures = {"median": statistics.median(values), "low": min(values), "high": max(values)}
    return {**{name: digits(value) for name, value in figures.items()}, "runs": len(values)}


def ratio(values: Sequence[float], base: Sequence[float], factor: float = 1.0) -> Figures:
    """Summary of ``value / base / factor``, each value by that of its own round.

    Raises:
        ValueError: They are not of the same rounds.
    """
    if len(values) != len(base):
        raise ValueError(f"{len(values)} values of {len(base)} rounds")
    return summary([value / other / factor for value, other in zip(values, base)])


def digits(value: float, count: int = 4) -> float:
    """``value`` to some significant digits."""
    return float(f"{value:.{count}g}")
