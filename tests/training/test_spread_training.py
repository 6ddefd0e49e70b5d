"""Training spread over real processes: the same weights as one process, one end for all."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import yaml

from nnabla_dqa.training.checkpoint import read_checkpoint
from tests.distributed.test_mpi import ENVIRONMENT, MPIEXEC
from tests.distributed.test_mpi import pytestmark as needs_mpi
from tests.training.experiments import experiment, recipe, run

pytestmark = needs_mpi
PROGRAM = Path(__file__).with_name("spread_program.py")


def start(count, case, folder):
    command = [str(MPIEXEC), "-n", str(count), sys.executable, str(PROGRAM), case, str(folder)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, env=ENVIRONMENT)


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
def single(tmp_path_factory):
    return trained(1, tmp_path_factory.mktemp("single"))[0]


@pytest.fixture(scope="module")
def double(tmp_path_factory):
    return trained(2, tmp_path_factory.mktemp("double"))


def test_two_processes_with_half_the_batch_equal_one_with_the_whole(single, double):
    first, second = double
    assert single["dqa/step"] == 50
    for name, array in single.items():
        np.testing.assert_array_equal(first[name], second[name], err_msg=name)
        np.testing.assert_allclose(first[name], array, rtol=0, atol=1e-5, err_msg=name)
    alpha = single["first/conv/dqa/alpha"]
    assert np.abs(alpha - [0.857, 0.714, 0.429]).max() > 1e-3


def test_two_processes_resume_bit_for_bit_and_others_but_for_rounding(single, double, tmp_path):
    stopped = start(2, "stopped", tmp_path)
    assert "TrainingStopped: stopped after 2" in stopped.stderr
    # At 20 an epoch ends: a checkpoint of that step would be the one before.
    assert 21 <= read_checkpoint(tmp_path / "checkpoint").notes["step"] <= 22
    kept = (tmp_path / "checkpoint").read_bytes()
    for result in trained(2, tmp_path, "resumed"):
        for name, array in double[0].items():
            np.testing.assert_array_equal(result[name], array, err_msg=name)
    for count in (1, 4):
        (tmp_path / "checkpoint").write_bytes(kept)
        for result in trained(count, tmp_path, "resumed"):
            for name, array in single.items():
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


def by_command(folder, *options, count=2, **changes):
    """``nnabla-dqa train`` in several processes."""
    keys = recipe(folder, **{"quantizers": "minmax:2,4", "batch_size": 12, **changes})
    (folder / "r.yaml").write_text(yaml.safe_dump(keys))
    start = [str(MPIEXEC), "-n", str(count), sys.executable, "-m", "nnabla_dqa", "train"]
    start += ["--recipe", str(folder / "r.yaml"), "-o", str(folder / "run"), *options]
    return subprocess.run(start, capture_output=True, text=True, timeout=300, env=ENVIRONMENT)


def test_two_processes_fill_one_folder(tmp_path):
    done = by_command(tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("epoch 2/2") == 1
    assert json.loads((tmp_path / "run" / "run.json").read_text())["starts"][0]["processes"] == 2
    assert (tmp_path / "run" / "deployed.nnp").is_file()


def test_processes_learn_from_the_same_teacher(tmp_path):
    """Statistics computed anew as the hard phase begins are equal in all of them, too."""
    run(experiment(tmp_path, batch_size=12), tmp_path / "float")
    teacher = str(tmp_path / "float" / "network.nnp")
    results = []
    for name, options in (("whole", ()), ("saved", ("--save-every", "0"))):
        (tmp_path / name).mkdir()
        done = by_command(tmp_path / name, *options, teacher=teacher, bn_statistics="both")
        assert done.returncode == 0, done.stderr
        results.append(read_checkpoint(tmp_path / name / "run" / "checkpoint"))
    assert results[0].notes["teacher"] == results[1].notes["teacher"]
    for name, array in results[0].arrays.items():
        np.testing.assert_array_equal(results[1].arrays[name], array, err_msg=name)


@pytest.mark.parametrize("count", [2, 3])
def test_a_checkpoint_within_an_epoch_changes_no_bit(count, tmp_path):
    """Not of the running statistics either, which every process has its own part in."""
    results = []
    for name, minutes in (("rarely", "10"), ("always", "0")):
        (tmp_path / name).mkdir()
        done = by_command(tmp_path / name, "--save-every", minutes, count=count)
        assert done.returncode == 0, done.stderr
        results.append(read_checkpoint(tmp_path / name / "run" / "checkpoint").arrays)
    assert results[0].keys() == results[1].keys()
    for name, array in results[0].items():
        np.testing.assert_array_equal(results[1][name], array, err_msg=name)


def test_synchronized_normalization_on_cpus_is_one_line_of_error(tmp_path):
    done = by_command(tmp_path, "--set", "sync_normalization=true")
    assert done.returncode != 0
    assert "nnabla-dqa: sync_normalization over several processes" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "run").exists()


def test_the_same_error_of_all_processes_is_told_once(tmp_path):
    for change in ("epochs=0", "batch_size=13"):
        done = by_command(tmp_path, "--set", change)
        assert done.returncode != 0
        assert done.stderr.count("nnabla-dqa: ") == 1, done.stderr
