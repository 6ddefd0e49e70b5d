from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from nnabla_dqa.parallel import ParallelError, lifeline
from nnabla_dqa.parallel.lifeline import Lifeline
from tests.parallel.threads import together

ROOT = Path(__file__).parents[2]
PROGRAM = Path(__file__).with_name("processes.py")


def start(folder, size, case):
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return [
        subprocess.Popen(
            [sys.executable, str(PROGRAM), str(folder), str(rank), str(size), case],
            stderr=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            text=True,
            env=environment,
        )
        for rank in range(size)
    ]


def wait_for(path):
    end = time.monotonic() + 60
    while not path.is_file():
        assert time.monotonic() < end
        time.sleep(0.01)


def connected(folder, size):
    """Machine, offer, errors, and the program's own: all ranks have written the fourth."""
    for rank in range(size):
        wait_for(folder / f"3.{rank}")


@pytest.mark.parametrize("gone", [0, 1])
def test_a_rank_that_is_killed_ends_all(tmp_path, gone):
    ranks = start(tmp_path, 3, "wait")
    connected(tmp_path, 3)
    ranks[gone].send_signal(signal.SIGKILL)
    started = time.monotonic()
    for rank, process in enumerate(ranks):
        _, told = process.communicate(timeout=30)
        if rank != gone:
            assert process.returncode == 1
            assert f"rank {gone} is gone; stopping, the checkpoint is kept\n" in told
    assert time.monotonic() - started < 5


def test_a_checkpoint_is_written_before_the_end(tmp_path):
    ranks = start(tmp_path, 2, "write")
    wait_for(tmp_path / "begun")
    ranks[1].send_signal(signal.SIGKILL)
    assert ranks[0].communicate(timeout=30)[1].count("rank 1 is gone") == 1
    assert ranks[0].returncode == 1
    assert (tmp_path / "written").is_file()
    ranks[1].communicate()


def test_after_closing_nothing_is_left(tmp_path):
    for process in start(tmp_path, 3, "close"):
        _, told = process.communicate(timeout=30)
        assert process.returncode == 0, told
        assert "gone" not in told


class Star:
    """Lifelines of several ranks in one process, which note losses."""

    def __init__(self, size, monkeypatch):
        monkeypatch.setattr(lifeline, "GRACE", 0.1)
        # It would end the process of the tests.
        monkeypatch.setattr(lifeline, "_after", lambda seconds, action: None)
        pairs = {rank: socket.socketpair() for rank in range(1, size)}
        self.sockets = pairs
        self.lost = {rank: [] for rank in range(size)}
        ends = [{rank: pair[0] for rank, pair in pairs.items()}]
        ends += [{0: pairs[rank][1]} for rank in range(1, size)]
        self.lines = [Lifeline(i, end, self.lost[i].append) for i, end in enumerate(ends)]

    def wait(self, count):
        end = time.monotonic() + 10
        while sum(map(len, self.lost.values())) < count and time.monotonic() < end:
            time.sleep(0.01)
        time.sleep(0.3)

    def close(self):
        threads = [threading.Thread(target=line.close, args=(0.5,)) for line in self.lines]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert "lifeline" not in [thread.name for thread in threading.enumerate()]


def test_rank_0_tells_the_others(monkeypatch):
    star = Star(3, monkeypatch)
    star.sockets[2][1].shutdown(socket.SHUT_RDWR)
    star.wait(3)
    # Rank 2 cannot know that it was its own end that failed.
    assert star.lost == {0: [2], 1: [2], 2: [0]}
    star.close()


def test_a_rank_that_leaves_is_named_and_is_not_ended(monkeypatch):
    star = Star(3, monkeypatch)
    star.lines[1].leave(1000)
    star.wait(2)
    assert star.lost == {0: [1], 1: [], 2: [1]}
    star.close()


def test_ranks_that_fail_together_say_nothing_of_each_other(monkeypatch):
    star = Star(3, monkeypatch)
    for line in star.lines:
        line.leave(1000)
    started = time.monotonic()
    for line in star.lines:
        line.wait_for_others(10)
    assert time.monotonic() - started < 5
    assert star.lost == {0: [], 1: [], 2: []}
    star.close()


def test_a_good_end_is_no_loss(monkeypatch):
    star = Star(4, monkeypatch)
    star.close()
    assert not any(star.lost.values())


def test_no_connection_is_an_error_on_every_rank(monkeypatch):
    def refuse(to, rank):
        raise OSError("rank 1 cannot connect")

    def accept(listening, size):
        listening.socket.close()
        return {}

    monkeypatch.setattr(lifeline, "connect", refuse)
    monkeypatch.setattr(lifeline, "accept_all", accept)
    errors = together(2, lambda comm: Lifeline.between(comm.rank, 2, comm.gather))
    assert [type(error) for error in errors] == [ParallelError] * 2
    assert {str(error) for error in errors} == {"rank 1 cannot connect"}
