"""Training spread over real processes: the same weights as one process, one end for all."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from nnabla_dqa.training.checkpoint import read_checkpoint
from tests.parallel.test_mpi import ENVIRONMENT, MPIEXEC
from tests.parallel.test_mpi import pytestmark as needs_mpi

pytestmark = needs_mpi
PROGRAM = Path(__file__).with_name("spread_program.py")


def start(count, case, folder):
    command = [str(MPIEXEC), "-n", str(count), sys.executable, str(PROGRAM), case, str(folder)]
    return subprocess.run(command, capture_output=True, text=True, timeout=90, env=ENVIRONMENT)


def trained(count, folder, case="whole"):
    folder.mkdir(exist_ok=True)
    done = start(count, case, folder)
    assert done.returncode == 0, done.stderr
    results = []
    for rank in range(count):
        with np.load(folder / f"rank{rank}.npz") as arrays:
            results.append(dict(arrays))
    return results


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    return trained(1, tmp_path_factory.mktemp("alone"))[0]


def test_two_processes_with_half_the_batch_equal_one_with_the_whole(alone, tmp_path):
    first, second = trained(2, tmp_path)
    assert alone["dqa/step"] == 50
    for name, array in alone.items():
        np.testing.assert_array_equal(first[name], second[name], err_msg=name)
        np.testing.assert_allclose(first[name], array, rtol=0, atol=1e-5, err_msg=name)
    alpha = alone["first/conv/dqa/alpha"]
    assert np.abs(alpha - [0.857, 0.714, 0.429]).max() > 1e-3


def test_the_checkpoint_of_two_goes_on_with_one_and_with_four(alone, tmp_path):
    stopped = start(2, "stopped", tmp_path)
    assert "TrainingStopped: stopped after 2" in stopped.stderr
    assert 20 <= read_checkpoint(tmp_path / "checkpoint").notes["step"] <= 22
    kept = (tmp_path / "checkpoint").read_bytes()
    for count in (1, 4):
        (tmp_path / "checkpoint").write_bytes(kept)
        for result in trained(count, tmp_path, "resumed"):
            for name, array in alone.items():
                np.testing.assert_allclose(result[name], array, rtol=0, atol=1e-5, err_msg=name)


def test_a_signal_to_one_process_between_epochs_stops_both(tmp_path):
    stopped = start(2, "between", tmp_path)
    assert "TrainingStopped: stopped after 5 of 50 steps; 5 kept" in stopped.stderr
    assert read_checkpoint(tmp_path / "checkpoint").notes["step"] == 5


def test_when_a_process_is_killed_the_other_ends_and_the_checkpoint_is_whole(tmp_path):
    started = time.monotonic()
    done = start(2, "killed", tmp_path)
    assert done.returncode != 0
    assert time.monotonic() - started < 60
    assert read_checkpoint(tmp_path / "checkpoint").notes["step"] >= 19
    assert not list(tmp_path.glob("rank*.npz"))


def test_processes_that_do_not_agree_are_an_error_before_the_first_update(tmp_path):
    done = start(2, "unequal", tmp_path)
    assert done.returncode != 0
    assert "first/conv: alpha is not the same in all processes" in done.stderr
    assert not list(tmp_path.iterdir())
