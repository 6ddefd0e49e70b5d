"""Whole updates of the nets, and the mixtures of their weights alone."""

from __future__ import annotations

import statistics
from functools import partial
from typing import Any, Callable, Dict, List, Optional, Tuple

from benchmarks.bench.measuring import clock, digits, ratio, summary, take_turns
from benchmarks.bench.nets import Mixtures, enter, make_net
from benchmarks.bench.plan import BITS, Condition, NetPlan
from benchmarks.step_time import Net

SOLVER_ROUNDS = 9


def whole_steps(plan: NetPlan) -> Dict[str, Any]:
    """Time of whole updates for each condition, and of the solver's part of them.

    Each ratio is to the float net's update of the same round.
    """
    nets = {
        method: make_net(method, plan.model, plan.width, plan.batch)
        for method in dict.fromkeys(method for method, _ in plan.conditions)
    }
    calls = {name_of(c): partial(_update, nets[c[0]], c[1]) for c in plan.conditions}
    for _ in range(plan.prime):
        nets["float"].update()
    times = take_turns(calls, plan.rounds, plan.warm_up)
    often = {name_of(c): calls[name_of(c)] for c in plan.often}
    for name, values in take_turns(often, plan.more_rounds, 0).items():
        times[name] += values
    enter(nets["fused"].solver.annealer, "start")
    solvers = {m: partial(clock, nets[m].solver.update) for m in ("float", "plain", "fused")}
    solver_times = take_turns(solvers, SOLVER_ROUNDS)
    return {
        "net": plan.key,
        "weights": sum(layer.weight.size for layer in nets["fused"].solver.layers),
        "ms": {name: summary(values) for name, values in times.items()},
        "to_float": {
            name: ratio(values, times["float"][: len(values)]) for name, values in times.items()
        },
        "solver_ms": {name: summary(values) for name, values in solver_times.items()},
    }


def name_of(condition: Condition) -> str:
    """``fused hard`` for ``("fused", "hard")``."""
    return " ".join(condition).rstrip()


def _update(net: Net, phase: str) -> float:
    if phase:
        enter(net.solver.annealer, phase)
    return net.update()


def mixtures_alone(
    model: str,
    width: float,
    rounds: int,
    backends: Tuple[str, ...] = ("fused", "portable"),
    own: bool = True,
    channel_last: bool = False,
) -> Dict[str, Any]:
    """Time of forward and backward of all mixtures of a net, for K = 1 to 5.

    The names are backend, K and phase: ``fused 3 hard``.
    """
    nets: Dict[int, Mixtures] = {}
    for count in (*BITS, *([0] if own else [])):
        nets[count] = Mixtures(model, width, count, channel_last, nets.get(1))
    for count, mixtures in nets.items():
        for backend in backends if count else ("own",):
            mixtures.build(backend)
    cases: List[Tuple[str, int, str]] = [("own", 0, "start")] if own else []
    for backend in backends:
        cases += [(backend, count, "start") for count in BITS]
        cases += [(backend, 3, phase) for phase in ("late", "hard")]
    calls: Dict[str, Callable[[], float]] = {
        "own" if not count else f"{backend} {count} {phase}": partial(
            _update_alone, nets[count], backend, phase
        )
        for backend, count, phase in cases
    }
    weights = nets[3].weights
    times = take_turns(calls, rounds)
    return {
        "net": f"{model}, width {width:g}",
        "weights": weights,
        "ms": {name: summary(values) for name, values in times.items()},
        "ns_per_weight": {
            name: digits(1e6 * statistics.median(values) / weights)
            for name, values in times.items()
        },
    }


def _update_alone(mixtures: Mixtures, backend: str, phase: str) -> float:
    enter(mixtures.annealer, phase)
    return clock(lambda: mixtures.update(backend, phase))


def own_parts(steps: List[Dict[str, Any]], alone: List[Dict[str, Any]]) -> List[Dict[str, Any]]:
    """What a method adds to a float update, by what was measured of it alone.

    The mixtures of the net's weights, and what the attached solver needs more
    than a plain one, over the float net's update: less noise than the
    difference of two whole updates.
    """
    rows = []
    for step in steps:
        mixtures = _same_net(step, alone)
        if mixtures is None:
            continue
        base = step["ms"]["float"]["median"]
        solver = {name: figures["median"] for name, figures in step["solver_ms"].items()}
        for name, figures in mixtures["ms"].items():
            mixed = solver["plain" if " 1 " in name else "fused"]
            more = 0.0 if name == "own" else max(0.0, mixed - solver["float"])
            rows.append(
                {
                    "net": step["net"],
                    "method": name,
                    "mixture": digits(figures["median"] / base),
                    "solver": digits(more / base),
                }
            )
    return rows


def _same_net(step: Dict[str, Any], alone: List[Dict[str, Any]]) -> Optional[Dict[str, Any]]:
    return next((a for a in alone if step["net"].startswith(a["net"] + ",")), None)
