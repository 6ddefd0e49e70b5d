"""Runs side by side, in processes of their own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PROGRAM = """
import os, sys, time
from pathlib import Path

sys.path.insert(0, sys.argv[1])
from runner import run_all


def one(folder, name, tick):
    Path(folder, name).write_text(str(os.getpid()))
    time.sleep(300)


if __name__ == "__main__":
    run_all(one, {name: (sys.argv[2], name) for name in "ab"}, 1, 2)
"""


def is_there(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    # One that has ended stays until somebody asks for its code.
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_the_workers_of_a_killed_process_end_too(tmp_path):
    (tmp_path / "program.py").write_text(PROGRAM)
    command = [sys.executable, tmp_path / "program.py", ROOT / "examples", tmp_path]
    with subprocess.Popen(command, env={**os.environ, "PYTHONPATH": str(ROOT)}) as process:
        files = [tmp_path / name for name in "ab"]
        end = time.monotonic() + 60
        while not all(f.exists() and f.read_text() for f in files) and time.monotonic() < end:
            time.sleep(0.1)
        workers = [int(f.read_text()) for f in files]
        process.send_signal(signal.SIGKILL)
    end = time.monotonic() + 30
    while any(map(is_there, workers)) and time.monotonic() < end:
        time.sleep(0.1)
    assert not any(map(is_there, workers))
