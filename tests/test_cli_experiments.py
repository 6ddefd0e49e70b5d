"""``nnabla-dqa train`` without an NNP: what it fills, what it refuses, and Ctrl-C."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import nnabla as nn
import pytest
import yaml

from nnabla_dqa.cli import main
from nnabla_dqa.commands import train as command
from nnabla_dqa.commands._format import epoch_line
from nnabla_dqa.distributed import SingleProcess
from nnabla_dqa.training.result import Epoch, TrainingStopped
from tests.training.experiments import recipe, result_of

COMMAND = [sys.executable, "-c", "import nnabla_dqa_command as c, sys; sys.exit(c.main())"]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder with images and a recipe with a base, where one works."""
    keys = recipe(tmp_path, quantizers="minmax:2,4,8", data={"train": "images.npz"})
    (tmp_path / "base.yaml").write_text(yaml.safe_dump({**keys, "epochs": 7}))
    (tmp_path / "r.yaml").write_text("base: base.yaml\nmodel: {classes: 3}\nepochs: 2\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(capsys, *arguments):
    """Exit code and the lines on stdout and stderr."""
    code = main([str(a) for a in arguments])
    captured = capsys.readouterr()
    return code, captured.out.splitlines(), captured.err.splitlines()


def refused(capsys, *arguments):
    """The only line on stderr of a command that must end with 2."""
    code, out, err = run(capsys, "train", *arguments)
    assert (code, out, len(err)) == (2, [], 1), (code, out, err)
    assert err[0].startswith("nnabla-dqa: ")
    assert "Traceback" not in err[0]
    return err[0]


def test_from_a_recipe_to_a_folder(folder, capsys):
    code, out, err = run(capsys, "train", "--recipe", "r.yaml", "-o", "runs/a")
    assert (code, err) == (0, [])
    assert [re.sub(r"\d+\.\d+", "#", line.split(" (")[0]) for line in out[:2]] == [
        "epoch 1/2: loss #, accuracy #",
        "epoch 2/2: loss #, accuracy #",
    ]
    result = result_of(folder / "runs" / "a")
    assert out[-1] == f"runs/a/deployed.nnp: accuracy {result['accuracy']:.4f}"
    assert any("stem/conv" in line and "MinMax2" in line for line in out)
    assert result["recipe"]["data"]["train"] == str(folder.resolve() / "images.npz")
    (start,) = json.loads((folder / "runs/a/run.json").read_text())["starts"]
    assert (start["from_step"], start["seed"], start["processes"]) == (0, 0, 1)
    code, out, err = run(capsys, "check", "runs/a/deployed.nnp")
    assert (code, err) == (0, [])
    nn.clear_parameters()


def test_a_float_experiment(folder, capsys):
    options = ["--set", "quantizers=null", "--set", "epochs=1"]
    code, out, err = run(capsys, "train", "--recipe", "r.yaml", "-o", "a", *options)
    assert (code, err, len(out)) == (0, [], 2)
    assert out[1].startswith("a/network.nnp: accuracy ")
    assert (folder / "a" / "network.nnp").exists()


SETS = [
    (["epochs=1"], {"epochs": 1}),
    (["epochs=1", "epochs=3"], {"epochs": 3}),
    (["learning_rate=1e-3"], {"learning_rate": 1e-3}),
    (["model.width=0.5", "model.name=resnet14_32"], {"model": {"width": 0.5, "classes": 3}}),
    (["model=resnet14_32"], {"model": {"name": "resnet14_32", "width": 0.25}}),
    (["data.mean=[0.1, 2e-1, 0]"], {"data": {"mean": [0.1, 0.2, 0.0], "std": [0.2, 0.25, 0.3]}}),
    (["solver={type: AdamW, wd: 1e-4}"], {"solver": {"type": "AdamW", "wd": 1e-4}}),
    (["solver=Adam"], {"solver": {"type": "Adam"}}),
    (["quantizers=sawb:2"], {"quantizers": "sawb:2"}),
    (["data.augment=none"], {"data": {"augment": "none"}}),
    (["temperature.end=1"], {"temperature": {"start": 100.0, "end": 1.0}}),
]


@pytest.mark.parametrize(("options", "expected"), SETS)
def test_set(options, expected, folder, monkeypatch):
    seen = []
    monkeypatch.setattr(
        "nnabla_dqa.commands.train.train",
        lambda experiment, *_, **__: seen.append(experiment) or (_ for _ in ()).throw(SystemExit),
    )
    given = [part for option in options for part in ("--set", option)]
    with pytest.raises(SystemExit):
        main(["train", "--recipe", "r.yaml", "-o", "a", *given, "--seed", "5"])
    (made,) = (experiment.to_json() for experiment in seen)
    assert made["seed"] == 5
    for key, value in expected.items():
        if isinstance(value, dict) and key in ("data", "model"):
            assert {name: made[key][name] for name in value} == value
        else:
            assert made[key] == value


BAD_SETS = {
    "epochs": "--set 'epochs' is not KEY=VALUE",
    "=3": "is not KEY=VALUE",
    "epochs=": "key 'epochs' must be a whole number",
    "epochs=three": "got 'three'",
    "epoch=3": "unknown key 'epoch', did you mean 'epochs'?",
    "model.wide=3": "unknown key 'wide'",
    "model..width=3": "unknown key ''",
    "data.mean=[1": "is no YAML value",
    "data.mean=[1, 2]": "three numbers; got [1, 2]",
    "model=3": "key 'model' must be a mapping",
    "epochs.x=3": "key 'epochs' must be a whole number",
    "base=other.yaml": "key 'base' is for a recipe in a file",
    "lambda=-1": "key 'lambda' must be a number >= 0",
    "quantizers=minmax:4,2": "write [2, 4]",
}


@pytest.mark.parametrize("option", BAD_SETS)
def test_bad_sets(option, folder, capsys):
    message = refused(capsys, "--recipe", "r.yaml", "-o", "a", "--set", option)
    assert BAD_SETS[option] in message
    assert not (folder / "a").exists()


def test_sets_that_contradict_each_other(folder, capsys):
    options = ["--set", "data=x.npz", "--set", "data.limit=3"]
    message = refused(capsys, "--recipe", "r.yaml", "-o", "a", *options)
    assert "data is set to a value already" in message


def test_data_is_kept_with_its_folder(folder, capsys):
    """The run can be resumed from another folder."""
    os.rename("images.npz", "other.npz")
    options = ["--data", "other.npz", "--set", "epochs=1", "--set", "quantizers=null"]
    assert run(capsys, "train", "--recipe", "r.yaml", "-o", "a", *options)[0] == 0
    kept = yaml.safe_load((folder / "a" / "recipe.yaml").read_text())
    assert kept["data"]["train"] == str(folder / "other.npz")
    assert kept["data"]["std"] == [0.2, 0.25, 0.3]


WRONG = [
    ([], "--recipe is needed"),
    (["-o", "a"], "--recipe is needed: what to train"),
    (["--recipe", "r.yaml"], "-o FOLDER is needed"),
    (["--recipe", "r.yaml", "-o", "a", "--force"], "--force: remove the folder a yourself"),
    (["--recipe", "gone.yaml", "-o", "a"], "gone.yaml"),
    (["--recipe", "nnp.yaml", "-o", "a"], "name an NNP or a model to train"),
    (["--recipe", "twice.yaml", "-o", "a"], "key 'model' is there twice"),
    (["--recipe", "r.yaml", "-o", "file"], "file: exists and is no empty folder"),
    (["--recipe", "r.yaml", "-o", "a", "--data", "gone.npz"], "gone.npz"),
    (["--recipe", "r.yaml", "-o", "a", "--seed", "-1"], "key 'seed'"),
    (["--recipe", "r.yaml", "-o", "a", "--type-config", "half"], "half needs a GPU"),
    (["--recipe", "r.yaml", "-o", "a", "--save-every", "-1"], "--save-every must be"),
    (["--recipe", "r.yaml", "-o", "a", "--save-every", "nan"], "--save-every must be"),
    (["--resume", "-o", "a"], "a: holds no run"),
    (["--resume"], "--recipe is needed"),
    (["--resume", "-o", "a", "--recipe", "r.yaml"], "a: holds no run"),
    (["--resume", "-o", "a", "--set", "epochs=3"], "a: holds no run"),
    (["x.nnp"], "--recipe is needed: how to train the NNP"),
    (["x.nnp", "--recipe", "r.yaml"], "keys 'network' and 'model': a recipe trains one of them"),
    (["x.nnp", "--recipe", "nnp.yaml", "-o", "a", "--run", "b"], "one folder is enough"),
    (["--set", "network=x.nnp", "--recipe", "nnp.yaml", "--type-config", "half"], "needs a GPU"),
]


@pytest.mark.parametrize(("arguments", "expected"), WRONG)
def test_wrong_combinations_are_one_line(arguments, expected, folder, capsys):
    (folder / "nnp.yaml").write_text("data: images.npz\n")
    (folder / "twice.yaml").write_text("model: resnet8_32\nmodel: resnet14_32\n")
    (folder / "file").touch()
    assert expected in refused(capsys, *arguments)
    assert not (folder / "a").exists()


@pytest.mark.slow
def test_ctrl_c_and_resume_write_what_one_run_writes(folder, capsys):
    """In a process of its own; Ctrl-C comes somewhere, SIGTERM somewhere else."""
    options = ["--recipe", "r.yaml", "--set", "epochs=8", "--set", "quantizers=minmax:2"]
    code, out, _ = run(capsys, "train", *options, "-o", "straight")
    assert code == 0
    stops = 0
    command = [*COMMAND, "train", *options, "-o", "run", "--save-every", "0"]
    for number in (signal.SIGINT, signal.SIGTERM):
        with subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        ) as p:
            before = steps(folder / "run")
            deadline = time.time() + 60
            while steps(folder / "run") == before and time.time() < deadline and p.poll() is None:
                time.sleep(0.02)
            p.send_signal(number)
            _, err = p.communicate(timeout=60)
        command = [*COMMAND, "train", "-o", "run", "--resume"]
        if p.returncode == 0:
            break
        stops += 1
        assert p.returncode == 1
        (line,) = err.splitlines()
        assert re.match(r"nnabla-dqa: stopped after \d+ of 24 steps; \d+ kept in run/", line)
        assert line.endswith("; nnabla-dqa train -o run --resume goes on")
        assert not (folder / "run" / "result.json").exists()
    assert stops
    code, resumed, err = run(capsys, "train", "-o", "run", "--resume")
    assert (code, err) == (0, [])
    assert result_of(folder / "run") == result_of(folder / "straight")
    assert resumed[-1].replace("run/", "straight/") == out[-1]
    written = [(folder / name / "deployed.nnp").read_bytes() for name in ("run", "straight")]
    assert written[0] == written[1]


def steps(folder):
    """When the checkpoint was written last."""
    path = folder / "checkpoint"
    return path.stat().st_mtime_ns if path.exists() else 0


def test_lines_of_epochs():
    epoch = Epoch(2, 0.5, 0.1, True, "accuracy", 0.75, 12.4, 0.8)
    assert epoch_line(epoch, 9) == (
        "epoch 2/9: loss 0.5000, accuracy 0.7500 (as mixed: 0.8000), lowest bits alone (12 s)"
    )
    assert epoch_line(Epoch(1, 2.0, 0.1, False, "", None, 0.2), 1) == "epoch 1/1: loss 2.0000 (0 s)"


@pytest.mark.parametrize(("size", "front"), [(1, ""), (2, "mpiexec -n 2 ")])
def test_how_a_stopped_run_goes_on(size, front, folder, capsys, monkeypatch):
    stopped = TrainingStopped(3, 6, 3, Path("a/checkpoint"))
    monkeypatch.setattr(command, "train", raiser(stopped))
    monkeypatch.setattr(command, "open_communicator", lambda *_: Processes(size))
    assert main(["train", "--recipe", "r.yaml", "-o", "a"]) == 1
    assert f"; {front}nnabla-dqa train -o a --resume goes on" in capsys.readouterr().err


class Processes(SingleProcess):
    def __init__(self, size):
        self.size = size


def raiser(error):
    def raises(*_, **__):
        raise error

    return raises
