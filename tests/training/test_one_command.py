"""One command from an NNP or a model to the folder of a run, in one process or two; both resume."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml

import nnabla_dqa as dqa
from nnabla_dqa.cli import main
from nnabla_dqa.nnp.check import check_file
from nnabla_dqa.training.checkpoint import read_checkpoint
from nnabla_dqa.training.run import train
from tests.distributed.test_mpi import ENVIRONMENT, MPIEXEC
from tests.distributed.test_mpi import pytestmark as needs_mpi
from tests.training.experiments import interrupted, recipe, result_of, run, signal_at
from tests.training.files import (
    assert_same_parameters,
    parameters_of,
    write_console,
    write_samples,
)

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::nnabla_dqa.layers.tensors.AttentionWarning"),
]
ROOT = Path(__file__).parents[2]
SHARED = Path(os.environ.get("NNABLA_DQA_SHARED", ROOT.parent / "shared"))
PUBLISHED = SHARED / "nnp" / "20_k00_mnist_conv2_bn_lrelu.nnp"
MNIST = SHARED / "data" / "mnist"
COMMAND = [sys.executable, "-c", "import nnabla_dqa_command as c, sys; sys.exit(c.main())"]
STOPPING = """
import os, signal, sys
import nnabla as nn
import nnabla_dqa as dqa
from nnabla_dqa.distributed import open_communicator
from nnabla_dqa.training.run import train

def stop(trainable, step):
    if step == int(sys.argv[4]) and trainable.communicator.rank == 1:
        os.kill(os.getpid(), signal.SIGTERM)

with open_communicator(nn.get_current_context()) as comm:
    try:
        train(
            sys.argv[1], sys.argv[2], folder=sys.argv[3], communicator=comm, on_step=stop,
            tensorboard=True,
        )
    except dqa.TrainingStopped:
        sys.exit(0)
sys.exit("the training was not stopped")
"""
"""Process 1 of those that train is told to stop in the middle of a step; 0 if all of them stop.

Not the exception's text: mpiexec ends a process as soon as another has failed, often before it
has written its own, and lines that both write are mixed.
"""


def assert_equal_runs(first, second):
    """Bit for bit: checkpoint with the solver's states, written networks, scores."""
    kept = [read_checkpoint(folder / "checkpoint") for folder in (first, second)]
    assert_same_parameters(kept[0].arrays, kept[1].arrays)
    # In the order of the solver's own map.
    states = [dict(sorted(one.solver.arrays.items())) for one in kept]
    assert_same_parameters(*states)
    assert result_of(first) == result_of(second)
    for name in {"trained.nnp", "deployed.nnp"} & set(os.listdir(first)):
        assert (first / name).read_bytes() == (second / name).read_bytes()


@pytest.fixture(params=["written", "published"])
def nnp(request, tmp_path):
    """A float NNP, and a recipe that converts and augments."""
    keys = {"quantizers": "minmax:2,4,8", "epochs": 2, "batch_size": 16, "learning_rate": 0.01}
    if request.param == "published":
        if not (PUBLISHED.is_file() and MNIST.is_dir()):
            pytest.skip(f"there is no {PUBLISHED} or {MNIST}")
        source, data = PUBLISHED, {"train": str(MNIST), "limit": 160, "holdout": 0.005}
    else:
        source = write_console(tmp_path / "net.nnp", dropout=0.2)
        write_samples(tmp_path / "test.npz", 100, seed=1)
        data = {"train": str(write_samples(tmp_path / "train.npz")), "validation": "test.npz"}
    data.update(augment="crop", pad=1)
    (tmp_path / "r.yaml").write_text(yaml.safe_dump({"data": data, **keys}))
    return source, tmp_path / "r.yaml"


@pytest.mark.mpi
class TestTwoProcesses:
    pytestmark = needs_mpi

    def start(self, *command):
        done = subprocess.run(
            [str(MPIEXEC), "-n", "2", *map(str, command)],
            capture_output=True,
            text=True,
            timeout=300,
            env=ENVIRONMENT,
        )
        return done.returncode, done.stdout, done.stderr

    def test_an_nnp_with_augmentation_fills_the_folder_of_a_run(self, nnp, tmp_path):
        from tests.training.events import curves

        source, path = nnp
        folder = tmp_path / "straight"
        code, out, err = self.start(
            *COMMAND, "train", source, "--recipe", path, "-o", folder, "--tensorboard"
        )
        assert code == 0, err
        assert "epoch 2/2: loss" in out
        result = json.loads((folder / "result.json").read_text())
        assert (result["method"], result["starts"][0]["processes"]) == ("DQA", 2)
        assert result["accuracy"] > 0.5
        assert f"{folder / 'deployed.nnp'}: accuracy {result['accuracy']:.4f}" in out
        files = {"trained.nnp", "deployed.nnp", "recipe.yaml", "run.json", "monitors"}
        assert files <= set(os.listdir(folder))
        assert check_file(folder / "deployed.nnp").ok
        assert dqa.summarize(folder / "trained.nnp")

        stopped = tmp_path / "stopped"
        code, _, err = self.start(sys.executable, "-c", STOPPING, source, path, stopped, 9)
        assert code == 0, err
        step = read_checkpoint(stopped / "checkpoint").notes["step"]
        assert 9 <= step <= 11
        code, _, err = self.start(*COMMAND, "train", "-o", stopped, "--resume")
        assert code == 0, err
        assert_equal_runs(folder, stopped)
        live = [curves(each / "monitors") for each in (folder, stopped)]
        assert live[0] == live[1]
        assert [*live[0]["epoch/loss"].values()] == pytest.approx(
            [epoch["loss"] for epoch in result["epochs"]]
        )


def test_an_nnp_in_one_process_resumes_bit_for_bit(nnp, tmp_path):
    """With the trained NNP beside the folder of the run, too."""
    source, path = nnp
    command = ["train", str(source), "--recipe", str(path), "--run", str(tmp_path / "a")]
    assert main([*command, "-o", str(tmp_path / "t.nnp")]) == 0
    assert set(os.listdir(tmp_path / "a")) >= {"deployed.nnp", "result.json", "checkpoint"}
    with pytest.raises(dqa.TrainingStopped):
        train(source, path, tmp_path / "u.nnp", folder=tmp_path / "b", on_step=signal_at(7))
    assert (
        main([*command[:-1], str(tmp_path / "b"), "-o", str(tmp_path / "u.nnp"), "--resume"]) == 0
    )
    assert_same_parameters(parameters_of(tmp_path / "t.nnp"), parameters_of(tmp_path / "u.nnp"))
    assert_equal_runs(tmp_path / "a", tmp_path / "b")


def test_a_resnet_learns_from_a_float_nnp(tmp_path):
    """Without labels: the teacher is what a float run has written."""
    float_run = run(
        dqa.Recipe.from_mapping(recipe(tmp_path, epochs=4, data={"augment": "none"})),
        tmp_path / "float",
    )
    keys = recipe(
        tmp_path,
        model={"name": "resnet20_32"},
        epochs=6,
        learning_rate=0.01,
        quantizers="minmax:2,4,8",
        rules=[{"layers": "fc*", "quantizers": "sawb:2@channel"}],
        loss="distillation",
        teacher="float/network.nnp",
        update_normalization=48,
    )
    np.savez(tmp_path / "unlabelled.npz", x=np.load(tmp_path / "images.npz")["x"])
    (tmp_path / "r.yaml").write_text(yaml.safe_dump(keys))
    assert main(["train", "--recipe", str(tmp_path / "r.yaml"), "-o", str(tmp_path / "a")]) == 0
    result = result_of(tmp_path / "a")
    losses = [epoch["loss"] for epoch in result["epochs"]]
    assert losses[-1] < losses[0]
    assert float_run.deployed_score > 0.6
    grids = {layer["name"]: layer["quantizer"] for layer in result["layers"]}
    assert len(grids) == 20
    assert {grids.pop("fc/affine"), *grids.values()} == {"SAWB2@-1", "MinMax2"}
    assert check_file(tmp_path / "a" / "deployed.nnp").ok

    interrupted(4, tmp_path / "r.yaml", tmp_path / "b")
    assert main(["train", "-o", str(tmp_path / "b"), "--resume"]) == 0
    assert_equal_runs(tmp_path / "a", tmp_path / "b")

    keys["data"].update(train=str(tmp_path / "unlabelled.npz"))
    made = train(
        dqa.Recipe.from_mapping({**keys, "teacher": str(float_run.path)}), folder=tmp_path / "c"
    )
    assert [epoch.loss for epoch in made.epochs] == losses
    assert made.deployed_score is None
