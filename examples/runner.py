"""What the examples share: runs side by side under a progress bar, and honest measuring."""

from __future__ import annotations

import concurrent.futures as futures
import json
import multiprocessing
import os
import platform
import subprocess
import sys
import threading
import warnings
from pathlib import Path
from typing import Any, Callable, Dict, Hashable, List, Mapping, Sequence

import nnabla as nn
import numpy as np
from tqdm import tqdm

import nnabla_dqa as dqa
from nnabla_dqa.backends.cpu import threads
from nnabla_dqa.backends.select import mixtures_by
from nnabla_dqa.onednn.accelerate import layers_by

HERE = Path(__file__).resolve().parent
Tick = Callable[[], None]

_ticks: Any = None


def _start_worker(ticks: Any, jobs: int) -> None:
    global _ticks
    _ticks = ticks
    # The runs share the cores; results do not depend on it.
    os.environ.setdefault("NNABLA_DQA_THREADS", str(max(1, threads() // jobs)))
    # Layers whose attention ended elsewhere are counted and printed with the table.
    warnings.simplefilter("ignore", dqa.AttentionWarning)
    threading.Thread(target=_end_with_the_parent, daemon=True).start()


def _end_with_the_parent() -> None:
    """However it ended: killed, it tells its workers nothing, and they would go on for hours."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _tick() -> None:
    with _ticks.get_lock():
        _ticks.value += 1


def _call(function: Callable[..., Any], arguments: tuple) -> Any:
    return function(*arguments, _tick)


def run_all(
    function: Callable[..., Any], runs: Mapping[Hashable, tuple], ticks_each: int, jobs: int
) -> Dict[Any, Any]:
    """``function(*arguments, tick)`` for every run, ``jobs`` processes at a time.

    Each run calls ``tick`` ``ticks_each`` times to move the progress bar. The
    first error stops everything.
    """
    context = multiprocessing.get_context("spawn")
    ticks = context.Value("i", 0)
    results = {}
    with (
        futures.ProcessPoolExecutor(jobs, context, _start_worker, (ticks, jobs)) as pool,
        tqdm(total=len(runs) * ticks_each, unit="epoch") as bar,
    ):
        keys = {pool.submit(_call, function, args): key for key, args in runs.items()}
        waiting = set(keys)
        try:
            while waiting:
                done, waiting = futures.wait(waiting, 0.2, futures.FIRST_COMPLETED)
                bar.update(ticks.value - bar.n)
                results.update({keys[run]: run.result() for run in done})
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return results


def train_alone(command: List[str], label: str) -> None:
    """Run a training in a process with one thread: more would be in the way of others beside it.

    Raises:
        RuntimeError: It failed; ``label`` and its last line.
    """
    done = subprocess.run(
        command,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(HERE.parent)},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        said = done.stderr.strip().splitlines() or [f"ended with {done.returncode}"]
        raise RuntimeError(f"{label}: {said[-1]}")


def measure(paths: List[str], x: np.ndarray, t: np.ndarray, folder: str) -> Dict[str, float]:
    """Accuracy of each NNP, in percent, in a process that cannot import nnabla_dqa."""
    np.savez(f"{folder}/data.npz", x=x, t=t)
    command = [sys.executable, str(HERE / "evaluate_plain.py"), f"{folder}/data.npz", *paths]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"evaluate_plain.py failed: {done.stderr.strip().splitlines()[-1]}")
    accuracies: Dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return accuracies


def shown(words: Sequence[str], places: Mapping[str, str]) -> List[str]:
    """The words of a command as others would type them.

    Args:
        words: As they were given.
        places: What is shown of the path behind each of these options; "": neither.
    """
    result = list(words)
    for name, place in places.items():
        if name in result:
            at = result.index(name)
            result[at : at + 2] = [name, place] if place else []
    return result


def paired(scores: Sequence[float], base: Sequence[float]) -> str:
    """By how much ``scores`` are above ``base``, seed by seed: mean and its standard error."""
    found = np.subtract(scores, base)
    return f"{found.mean():+.2f} ± {found.std(ddof=1) / len(found) ** 0.5:.2f}"


def environment() -> Dict[str, Any]:
    """The machine and the versions a figure belongs to."""
    return {
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, {platform.system()}",
        "mixtures": mixtures_by(nn.get_current_context()),
        "layers": layers_by(nn.get_current_context()),
        "versions": {
            "python": platform.python_version(),
            "nnabla": nn.__version__,
            "numpy": np.__version__,
            "nnabla_dqa": dqa.__version__,
        },
    }
