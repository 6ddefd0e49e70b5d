"""Whole updates with the layers on oneDNN, beside NNabla's own."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
from functools import partial
from typing import Any, Dict, Iterator, List, Tuple
from unittest import mock

import nnabla_dqa as dqa
from benchmarks.bench.measuring import ratio, summary, take_turns
from benchmarks.bench.nets import enter, make_net
from benchmarks.bench.plan import Condition, LayersPlan
from benchmarks.step_time import Net
from nnabla_dqa.backends.cpu import threads
from nnabla_dqa.onednn import library

CONDITIONS: Tuple[Condition, ...] = (
    ("float", ""),
    ("plain", ""),
    ("fused", "start"),
    ("fused", "hard"),
)
WITH_ACTIVATIONS: Tuple[Condition, ...] = (
    ("float", ""),
    ("fused", "start"),
    ("w+a", "start"),
    ("w+a", "hard"),
)


def usable() -> str:
    """Why oneDNN cannot be used, empty if it can."""
    return library.why_not()


def measure(plan: LayersPlan) -> Dict[str, Any]:
    """Updates with all threads, with one, and with all beside a process that keeps a core busy.

    Every ratio is to the float net on oneDNN of the same round and the same threads.
    """
    found: Dict[str, Any] = {"net": plan.key, "onednn": library.describe(), "by_threads": []}
    with _net("float", plan, "nnabla") as nnabla:
        for count, busy in ((threads(), False), (1, False), (threads(), True)):
            with _threads(count), _busy_core(busy):
                found["by_threads"].append(
                    {"threads": count, "busy_process": busy, **_turns(plan, nnabla, busy)}
                )
            if plan.reduced:
                break
    return found


def _turns(plan: LayersPlan, nnabla: Net, busy: bool) -> Dict[str, Any]:
    conditions = WITH_ACTIVATIONS if plan.activations else CONDITIONS
    conditions = conditions[:1] if busy else conditions
    with contextlib.ExitStack() as stack:
        nets = {
            method: stack.enter_context(_net(method, plan, "onednn"))
            for method in dict.fromkeys(method for method, _ in conditions)
        }
        calls = {" ".join(c).rstrip(): partial(_update, nets[c[0]], c[1]) for c in conditions}
        slow = {"NNabla float": nnabla.update, "float": nets["float"].update}
        times = take_turns(slow, plan.slow_rounds, 1)
        base = times.pop("float")
        result = {
            "ms": {"NNabla float": summary(times["NNabla float"])},
            "to_float": {"NNabla float": ratio(times["NNabla float"], base)},
        }
        times = take_turns(calls, plan.rounds, 2)
        result["ms"].update({name: summary(values) for name, values in times.items()})
        result["to_float"].update(
            {name: ratio(values, times["float"]) for name, values in times.items()}
        )
        return result


def _update(net: Net, phase: str) -> float:
    if phase:
        enter(net.solver.annealer, phase)
    return net.update()


@contextlib.contextmanager
def _net(method: str, plan: LayersPlan, layers: str) -> Iterator[Net]:
    net = make_net(method, plan.model, plan.width, plan.batch, layers=layers)
    yield net


@contextlib.contextmanager
def _threads(count: int) -> Iterator[None]:
    with mock.patch.dict(os.environ, {"NNABLA_DQA_THREADS": str(count)}):
        yield


def _spin() -> None:
    while True:
        pass


@contextlib.contextmanager
def _busy_core(busy: bool) -> Iterator[None]:
    if not busy:
        yield
        return
    process = multiprocessing.get_context("spawn").Process(target=_spin, daemon=True)
    process.start()
    try:
        yield
    finally:
        process.terminate()
        process.join()


def measure_all(plans: Tuple[LayersPlan, ...]) -> Any:
    """:func:`measure` for each plan, or why there is nothing to measure."""
    if usable():
        return usable()
    with dqa.backend(layers="onednn"):
        return [measure(plan) for plan in plans]


def rows_of(section: List[Dict[str, Any]], net: str, count: int, busy: bool) -> Dict[str, Any]:
    """The ratios of one net, for a number of threads."""
    for entry in section:
        for turns in entry["by_threads"]:
            if (
                entry["net"].startswith(net)
                and turns["threads"] == count
                and turns["busy_process"] == busy
            ):
                return dict(turns["to_float"])
    return {}
