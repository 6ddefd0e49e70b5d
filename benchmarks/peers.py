"""An update of ResNet-18 here and in PyTorch, float and with 2-bit weights, in one run.

    make bench-peers    # makes .venv-peers with PyTorch and Brevitas, then runs this

Ours are on oneDNN. PyTorch runs in an environment and a process of its own; the nets take turns,
update by update, with the same batch, width and threads. An update is forward, backward, weight
decay and momentum on images that lie in memory.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any, Callable, Dict, List, Sequence
from unittest import mock

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.bench.measuring import ratio, summary, take_turns
from benchmarks.bench.nets import make_net
from nnabla_dqa._util.files import write_atomically
from nnabla_dqa.onednn import library

ROOT = Path(__file__).resolve().parents[1]
WORKER = Path(__file__).with_name("peers_torch.py")
OURS = {"float": "ours, float", "plain": "ours, `MinMax(2)`", "fused": "ours, DQA 2/4/8"}
FLOAT, BREVITAS = "PyTorch, float", "Brevitas, 2 bits"


class Peer:
    """The process with PyTorch."""

    def __init__(self, python: Path, threads: int, batch: int, width: float) -> None:
        command = [str(python), str(WORKER), str(threads), str(batch), str(width)]
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
        environment.pop("PYTHONPATH", None)
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )
        self.versions: Dict[str, str] = self._answer()

    def update(self, net: str) -> float:
        """Milliseconds of one update of ``"float"`` or ``"brevitas"``."""
        assert self._process.stdin is not None
        self._process.stdin.write(net + "\n")
        self._process.stdin.flush()
        return float(self._answer()["ms"])

    def _answer(self) -> Dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit("the process with PyTorch has ended; its error stands above")
        found: Dict[str, Any] = json.loads(line)
        return found

    def close(self) -> None:
        """End it."""
        self._process.communicate()


def measure(python: Path, threads: int, batch: int, width: float, rounds: int) -> Dict[str, Any]:
    """All nets with this many threads."""
    with mock.patch.dict(os.environ, {"NNABLA_DQA_THREADS": str(threads)}):
        nets = {m: make_net(m, "resnet18_32", width, batch, layers="onednn") for m in OURS}
    peer = Peer(python, threads, batch, width)
    calls: Dict[str, Callable[[], float]] = {OURS[m]: net.update for m, net in nets.items()}
    calls[FLOAT] = lambda: peer.update("float")
    calls[BREVITAS] = lambda: peer.update("brevitas")
    times = take_turns(calls, rounds, 2)
    peer.close()
    dqa = times[OURS["fused"]]
    return {
        "threads": threads,
        "versions": peer.versions,
        "ms": {name: summary(values) for name, values in times.items()},
        "dqa_to": {name: ratio(dqa, values) for name, values in times.items()},
    }


def as_table(content: Dict[str, Any]) -> str:
    """For the screen and the page."""
    lines = ["| threads | update of | ms | DQA 2/4/8 to it |", "| --- | --- | --- | --- |"]
    for entry in content["entries"]:
        for name, figures in entry["ms"].items():
            cells = [
                f"{f['median']:.{d}f} ({f['low']:.{d}f} - {f['high']:.{d}f})"
                for f, d in ((figures, 0), (entry["dqa_to"][name], 2))
            ]
            lines.append(f"| {entry['threads']} | {name} | {cells[0]} | {cells[1]} |")
    versions = ", ".join(f"{k} {v}" for k, v in content["entries"][0]["versions"].items())
    return "\n".join(lines) + (
        f"\n\n`{content['command']}`: {content['net']}, {content['rounds']} updates each in turns; "
        f"{content['machine']}, load before it began {content['load_at_start']:g}; "
        f"{content['onednn']}; {versions}."
    )


def main(given: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--python", type=Path, default=ROOT / ".venv-peers" / "bin" / "python")
    parser.add_argument("--threads", type=int, nargs="+", default=[2, 1])
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--width", type=float, default=1.0)
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("-o", "--output", type=Path, default=ROOT / "results" / "peers.json")
    arguments = parser.parse_args(given)
    if library.why_not():
        raise SystemExit(library.why_not())
    load = round(os.getloadavg()[0], 2)
    entries: List[Dict[str, Any]] = [
        measure(arguments.python, count, arguments.batch, arguments.width, arguments.rounds)
        for count in arguments.threads
    ]
    content = {
        "command": "make bench-peers",
        "net": f"resnet18_32, width {arguments.width:g}, batch {arguments.batch}",
        "rounds": arguments.rounds,
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "load_at_start": load,
        "onednn": library.describe().partition(",")[0],
        "entries": entries,
    }
    write_atomically(arguments.output, (json.dumps(content, indent=1) + "\n").encode())
    print(as_table(content))


if __name__ == "__main__":
    main(sys.argv[1:])
