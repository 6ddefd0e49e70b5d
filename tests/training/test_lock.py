"""Two processes do not train into one place."""

from __future__ import annotations

import subprocess
import sys

import pytest

from nnabla_dqa.training.checkpoint import CheckpointError
from nnabla_dqa.training.lock import locked
from nnabla_dqa.training.run import train
from tests.training.files import make, one_line

pytest.importorskip("fcntl")
HOLD = """
import sys, time
from pathlib import Path
from nnabla_dqa.training.lock import locked
with locked(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_second_training_is_refused_until_the_first_is_gone(tmp_path):
    source, recipe = make(tmp_path, epochs=1)
    target = tmp_path / "t.nnp"
    command = [sys.executable, "-c", HOLD, f"{target}.checkpoint"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout.readline() == "held\n"
        with pytest.raises(CheckpointError) as caught:
            train(source, recipe, target)
        assert one_line(caught) == f"{target}.checkpoint: another process trains into this"
        assert not target.exists()
        other.kill()
    train(source, recipe, target)
    assert target.exists()
    assert not list(tmp_path.glob(".*.lock"))


def test_it_is_released(tmp_path):
    with pytest.raises(KeyboardInterrupt), locked(tmp_path / "c"):
        raise KeyboardInterrupt
    with locked(tmp_path / "c"), pytest.raises(CheckpointError), locked(tmp_path / "c"):
        pass
