"""The command line: what it writes, what it refuses, and in how many words."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import nnabla as nn
import nnabla.functions as F
import nnabla.parametric_functions as PF
import numpy as np
import pytest
from nnabla.utils.save import save
from PIL import Image

import nnabla_dqa as dqa
from nnabla_dqa.cli import main
from nnabla_dqa.commands import deploy
from nnabla_dqa.commands._format import epoch_line
from nnabla_dqa.nnp.file import NetworkFile
from nnabla_dqa.nnp.live import Program
from nnabla_dqa.training.result import Epoch

pytestmark = pytest.mark.slow

COMMANDS = ("convert", "train", "summary", "deploy", "check", "evaluate", "report")
COMMAND = [sys.executable, "-c", "import nnabla_dqa_command as c, sys; sys.exit(c.main())"]
RECIPE = "data: data.npz\nepochs: 2\nbatch_size: 16\nloss: softmax_cross_entropy\n"


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder with a float NNP, data that it can learn, and a recipe."""
    rng = np.random.RandomState(0)
    x = nn.Variable((4, 1, 6, 6))
    h = PF.convolution(x, 4, (3, 3), name="conv")
    h = F.relu(PF.batch_normalization(h, batch_stat=False, name="bn"))
    y = F.softmax(PF.affine(h, 3, name="fc"))
    network = {"name": "net", "batch_size": 4, "outputs": {"y": y}, "names": {"x": x}}
    executor = {"name": "run", "network": "net", "data": ["x"], "output": ["y"]}
    contents = {"networks": [network], "executors": [executor]}
    save(str(tmp_path / "float.nnp"), contents)
    nn.clear_parameters()
    label = rng.randint(0, 3, (96, 1))
    image = rng.randn(96, 1, 6, 6) * 0.1 + label.reshape(-1, 1, 1, 1)
    np.savez(tmp_path / "data.npz", x=image.astype(np.float32), y=label)
    (tmp_path / "r.yaml").write_text(RECIPE)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(capsys, *arguments):
    """Exit code and the lines on stdout and stderr."""
    code = main([str(a) for a in arguments])
    captured = capsys.readouterr()
    return code, captured.out.splitlines(), captured.err.splitlines()


def refused(capsys, *arguments):
    """The only line on stderr of a command that must end with 2."""
    code, out, err = run(capsys, *arguments)
    assert (code, out, len(err)) == (2, [], 1), (code, out, err)
    assert err[0].startswith("nnabla-dqa: ")
    assert "Traceback" not in err[0]
    return err[0]


def test_from_float_to_checked_file(folder, capsys):
    before = (folder / "float.nnp").read_bytes()
    code, out, err = run(capsys, "convert", "float.nnp", "-o", "d.nnp", "--keep-float", "fc/*")
    assert (code, err) == (0, [])
    assert any("MinMax2 MinMax4 MinMax8" in line and "conv/conv" in line for line in out)
    assert any("FullPrecision" in line and "fc/*" in line for line in out)
    converted = (folder / "d.nnp").read_bytes()

    code, out, _ = run(capsys, "train", "d.nnp", "--recipe", "r.yaml", "-o", "t.nnp")
    assert code == 0
    assert sum(line.startswith("epoch ") for line in out) == 2
    assert (folder / "d.nnp").read_bytes() == converted

    code, out, _ = run(capsys, "deploy", "t.nnp", "-o", "s.nnp", "--fold-bn")
    assert code == 0
    size = (folder / "s.nnp").stat().st_size
    assert any(f"{size:,} bytes" in line for line in out)

    code, out, err = run(capsys, "check", "s.nnp")
    assert (code, err) == (0, [])
    assert any("net (x -> y)" in line for line in out)
    for name in ("float.nnp", "t.nnp", "s.nnp"):
        code, out, err = run(capsys, "evaluate", name, "--data", "data.npz")
        assert (code, err) == (0, [])
        assert "accuracy" in out[0]
    assert (folder / "float.nnp").read_bytes() == before


def test_trained_and_deployed_files_score_the_same(folder, capsys):
    run(capsys, "convert", "float.nnp", "-q", "sawb:2,4,8")
    run(capsys, "train", "float_dqa.nnp", "--recipe", "r.yaml")
    run(capsys, "deploy", "float_dqa_trained.nnp")
    scores = [
        run(capsys, "evaluate", name, "--data", "data.npz")[1][0].split(":")[1]
        for name in ("float_dqa_trained.nnp", "float_dqa_trained_deployed.nnp")
    ]
    assert scores[0] == scores[1]


def test_deploy_with_new_statistics(folder, capsys):
    run(capsys, "convert", "float.nnp", "-q", "minmax:2", "-o", "d.nnp")
    options = ["--allow-untrained", "--bn-data", "data.npz", "--bn-samples", "32"]
    code, _, _ = run(capsys, "deploy", "d.nnp", "-o", "s.nnp", *options)
    assert code == 0
    run(capsys, "deploy", "d.nnp", "-o", "old.nnp", "--allow-untrained")
    new = nn.graph_def.load("s.nnp").get_parameters()["bn/bn/mean"].d
    old = nn.graph_def.load("old.nnp").get_parameters()["bn/bn/mean"].d
    assert not np.allclose(new, old)
    assert "at least 2" in refused(capsys, "deploy", "d.nnp", "-o", "x.nnp", *options[:-1], "1")


def test_summary_states_the_bytes_on_disk(folder, capsys):
    run(capsys, "convert", "float.nnp", "-o", "d.nnp")
    run(capsys, "deploy", "d.nnp", "-o", "s.nnp", "--allow-untrained")
    kinds = {"float.nnp": "float", "d.nnp": "converted", "s.nnp": "deployed"}
    for name, kind in kinds.items():
        code, out, _ = run(capsys, "summary", name, "--json")
        told = json.loads("\n".join(out))
        assert (code, told["kind"]) == (0, kind)
        assert told["file_bytes"] == (folder / name).stat().st_size
        with zipfile.ZipFile(name) as archive:
            assert told["members"] == {i.filename: i.compress_size for i in archive.infolist()}
        assert [row["layer"] for row in told["layers"]] == ["conv/conv", "fc/affine"]
        assert [row["bits"] for row in told["layers"]] == ([32, 32] if kind == "float" else [2, 2])
        assert told["weights"] == 36 + 64 * 3
        assert told["other_parameters"] == 4 + 3 + 16
        assert told["float_bytes"] == 4 * (told["weights"] + told["other_parameters"])
        packed = (36 * 2 // 8 + 8) + (192 * 2 // 8 + 8) + 4 * 23
        assert told["packed_bytes"] == (told["float_bytes"] if kind == "float" else packed)
        assert sum(row["share"] for row in told["layers"]) == pytest.approx(1)
        code, out, _ = run(capsys, "summary", name)
        assert f"{told['file_bytes']:,} bytes on disk" in out[-1]


def test_nothing_to_convert_is_1_and_writes_nothing(folder, capsys):
    x = nn.Variable((2, 3))
    network = {"name": "n", "batch_size": 2, "outputs": {"y": F.relu(x)}, "names": {"x": x}}
    save("plain.nnp", {"networks": [network]})
    code, out, err = run(capsys, "convert", "plain.nnp")
    assert (code, out, len(err)) == (1, [], 1)
    assert "no layer to convert, nothing written" in err[0]
    assert not Path("plain_dqa.nnp").exists()


def test_check_is_1_for_a_file_that_is_not_deployed(folder, capsys):
    code, out, _ = run(capsys, "check", "float.nnp")
    assert code == 1
    assert any("not checked: nnabla-dqa has not deployed it" in line for line in out)


@pytest.mark.parametrize("command", COMMANDS)
def test_help_has_an_example(command, capsys):
    with pytest.raises(SystemExit) as stopped:
        main([command, "--help"])
    assert stopped.value.code == 0
    assert f"nnabla-dqa {command} " in capsys.readouterr().out.split("\nexample")[1]


def test_help_names_all_commands(capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["--help"])
    assert stopped.value.code == 0
    out = capsys.readouterr().out
    assert all(command in out for command in COMMANDS)
    assert "exit code" in out


@pytest.mark.parametrize("arguments", [[], ["melt"], ["convert"]])
def test_usage_errors_are_2(arguments, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert stopped.value.code == 2


@pytest.mark.parametrize("command", ["convert", "deploy", "train"])
def test_outputs_are_guarded(command, folder, capsys):
    run(capsys, "convert", "float.nnp", "-o", "d.nnp")
    source = "float.nnp" if command == "convert" else "d.nnp"
    more = {"train": ["--recipe", "r.yaml"], "deploy": ["--allow-untrained"]}.get(command, [])
    before = (folder / source).read_bytes()
    assert "never overwritten" in refused(capsys, command, source, "-o", source, "--force", *more)
    (folder / "there.nnp").write_text("precious")
    assert "--force" in refused(capsys, command, source, "-o", "there.nnp", *more)
    assert (folder / "there.nnp").read_text() == "precious"
    if command != "train":  # where it is the folder of the run
        assert ".nnp" in refused(capsys, command, source, "-o", "there.zip", *more)
    assert "no folder" in refused(capsys, command, source, "-o", "nowhere/x.nnp", *more)
    assert "is a folder" in refused(capsys, command, source, "-o", make("f.nnp"), *more)
    assert run(capsys, command, source, "-o", "there.nnp", "--force", *more)[0] == 0
    assert zipfile.is_zipfile("there.nnp")
    assert (folder / source).read_bytes() == before


def make(name):
    """A folder of this name."""
    Path(name).mkdir()
    return name


@pytest.mark.skipif(os.geteuid() == 0, reason="nothing is unwritable for root")
def test_a_folder_that_cannot_be_written_to(folder, capsys):
    Path("locked").mkdir(mode=0o500)
    assert "locked" in refused(capsys, "convert", "float.nnp", "-o", "locked/x.nnp")


def test_a_failure_while_writing_leaves_nothing(folder, capsys, monkeypatch):
    def fail(*_):
        raise OSError(28, "No space left on device", "x.nnp")

    (folder / "there.nnp").write_text("precious")
    monkeypatch.setattr(os, "replace", fail)
    before = sorted(os.listdir(folder))
    message = refused(capsys, "convert", "float.nnp", "-o", "there.nnp", "--force")
    assert "No space left" in message
    assert (folder / "there.nnp").read_text() == "precious"
    assert sorted(os.listdir(folder)) == before


def test_bad_input_is_one_line(folder, capsys):
    Path("text.nnp").write_text("not a zip")
    whole = (folder / "float.nnp").read_bytes()
    Path("cut.nnp").write_bytes(whole[: len(whole) // 2])
    Path("empty.nnp").write_bytes(b"")
    for name in ("text.nnp", "cut.nnp", "empty.nnp", "gone.nnp"):
        for command in ("convert", "deploy", "summary", "check"):
            assert name in refused(capsys, command, name)
        assert name in refused(capsys, "train", name, "--recipe", "r.yaml")
        assert name in refused(capsys, "evaluate", name, "--data", "data.npz")


RECIPES = {
    "epocs: 3": "unknown key 'epocs'",
    "epochs: three": "key 'epochs' must be a whole number",
    "learning_rate: -1": "key 'learning_rate' must be a number above 0",
    "solver: Madam": "key 'solver' must be one of",
    "loss: none": "key 'loss' must be one of",
    "output: nix": "computes no variable 'nix'",
    "data: {train: gone.npz}": "gone.npz",
    "- a": "mapping",
    "a: [": "not YAML",
}


@pytest.mark.parametrize("text", RECIPES)
def test_bad_recipes_are_one_line(text, folder, capsys):
    run(capsys, "convert", "float.nnp", "-o", "d.nnp")
    key = text.split(":")[0]
    kept = [line for line in RECIPE.splitlines() if not line.startswith(f"{key}:")]
    whole = text if text in ("- a", "a: [") else "\n".join([*kept, text])
    Path("bad.yaml").write_text(whole)
    assert RECIPES[text] in refused(capsys, "train", "d.nnp", "--recipe", "bad.yaml")
    assert not Path("d_trained.nnp").exists()


def test_bad_data_is_one_line(folder, capsys):
    run(capsys, "convert", "float.nnp", "-o", "d.nnp")
    good = dict(np.load("data.npz"))
    cases = {
        "shape": ({**good, "x": good["x"][:, :, :5]}, "(1, 5, 6)"),
        "labels": ({**good, "y": good["y"] + 1}, "3 classes"),
        "halves": ({**good, "y": good["y"] + 0.5}, "whole numbers"),
        "no labels": ({"x": good["x"]}, "no column 'y'"),
        "few": ({k: v[:3] for k, v in good.items()}, "batch_size"),
    }
    for name, (arrays, expected) in cases.items():
        np.savez("bad.npz", **arrays)
        options = ["--data", "bad.npz", "-o", "t.nnp"]
        code, _, err = run(capsys, "train", "d.nnp", "--recipe", "r.yaml", *options)
        assert code == 2
        assert err[-1].startswith("nnabla-dqa: ")
        assert expected in err[-1], name
        assert not [line for line in err[:-1] if not line.startswith("no validation data: ")]
        assert not Path("t.nnp").exists()


def test_rules_from_options_and_file(folder, capsys):
    Path("rules.yaml").write_text(
        "quantizers: sawb:2\nrules:\n  - {layers: fc*, quantizers: 'minmax:2,4@channel'}\n"
    )
    code, out, err = run(capsys, "convert", "float.nnp", "--rules", "rules.yaml", "-o", "a.nnp")
    assert (code, err) == (0, [])
    assert any("alpha does not learn" in line for line in out)
    assert any("SAWB2" in line for line in out)
    assert any("MinMax2@-1 MinMax4@-1" in line for line in out)
    assert "--rules" in refused(
        capsys, "convert", "float.nnp", "--rules", "rules.yaml", "-q", "bwn", "-o", "b.nnp"
    )
    assert "conv/conv, fc/affine" in refused(
        capsys, "convert", "float.nnp", "--rule", "nix=bwn", "-o", "b.nnp"
    )
    twice = ["--rule", "conv*=bwn", "--keep-float", "c*"]
    assert "both match" in refused(capsys, "convert", "float.nnp", *twice, "-o", "b.nnp")
    assert "LAYERS=SET" in refused(capsys, "convert", "float.nnp", "--rule", "x", "-o", "b.nnp")
    assert not Path("b.nnp").exists()


def test_debug_shows_where(folder, capsys):
    code, _, err = run(capsys, "convert", "gone.nnp", "--debug")
    assert code == 2
    assert any("Traceback" in line for line in err)


def test_an_existing_checkpoint_is_not_overwritten_by_chance(folder, capsys):
    run(capsys, "convert", "float.nnp", "-o", "d.nnp")
    train = ["train", "d.nnp", "--recipe", "r.yaml", "-o", "t.nnp"]
    assert run(capsys, *train)[0] == 0
    os.remove("t.nnp")
    assert "--resume" in refused(capsys, *train)
    assert run(capsys, *train, "--resume")[0] == 0
    assert "another training" in refused(capsys, *train, "--resume", "--force", "--seed", "3")


@pytest.mark.slow
def test_ctrl_c_keeps_the_checkpoint_and_resumes(folder):
    Path("long.yaml").write_text(RECIPE.replace("epochs: 2", "epochs: 4000"))
    subprocess.run([*COMMAND, "convert", "float.nnp", "-o", "d.nnp"], check=True)
    train = [*COMMAND, "train", "d.nnp", "--recipe", "long.yaml", "-o", "t.nnp"]
    with subprocess.Popen(train, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as p:
        deadline = time.time() + 60
        while not Path("t.nnp.checkpoint").exists() and time.time() < deadline:
            time.sleep(0.05)
        p.send_signal(signal.SIGINT)
        _, err = p.communicate(timeout=60)
    assert p.returncode == 1
    about_data, line = err.splitlines()
    assert about_data.startswith("no validation data: name data.validation or data.holdout")
    assert "stopped after" in line
    assert "--resume" in line
    assert not Path("t.nnp").exists()
    assert Path("t.nnp.checkpoint").exists()


def test_the_installed_command_is_quiet_on_errors(folder):
    done = subprocess.run([*COMMAND, "summary", "gone.nnp"], capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.splitlines() == ["nnabla-dqa: gone.nnp: there is no such file"]


def test_a_limit_of_the_users_own(folder, capsys):
    for arguments in (
        ["convert", "float.nnp", "-o", "d.nnp"],
        ["check", "float.nnp"],
        ["summary", "float.nnp"],
        ["deploy", "float.nnp", "-o", "s.nnp"],
    ):
        assert "larger --max-bytes" in refused(capsys, *arguments, "--max-bytes", "100")


def test_deploy_selects(folder, capsys):
    run(capsys, "convert", "float.nnp", "-o", "d.nnp", "-q", "minmax:2,4,8")
    given = ["deploy", "d.nnp", "--allow-untrained", "--force", "-o", "s.nnp"]
    assert run(capsys, *given, "--select", "target")[0] == 0
    code, _, err = run(capsys, *given, "--choose", "lowest")
    assert code == 0
    assert "--choose is deprecated; write --select target" in err


@pytest.mark.parametrize(
    "rule",
    ["fc*=sawb:2,4,channel_axis=0", "fc*={type: SAWB, bits: [2, 4], channel_axis: 0}"],
)
def test_rules_with_options_of_the_quantizers(rule, folder, capsys):
    mixing = ["--mixing", "attention:normalize=none"]
    code, out, _ = run(capsys, "convert", "float.nnp", "-o", "d.nnp", "--rule", rule, *mixing)
    assert code == 0
    assert any(line.startswith("fc/affine") and "SAWB2@0 SAWB4@0" in line for line in out)
    error = refused(capsys, "convert", "float.nnp", "-o", "e.nnp", "--rule", "fc*=sawb:2,gain=1")
    assert "SAWB has no field 'gain'" in error
    error = refused(capsys, "convert", "float.nnp", "-o", "e.nnp", "--mixing", "even")
    assert "mixing 'even' is none of Attention" in error
    assert "'nnabla_dqa.mixing_rules'" in error


@pytest.mark.parametrize("quantizers", ["lsq:2", "lsq:2,4,8", "minmax:2/lsq:2/lsq:4@channel"])
def test_a_quantizer_with_state_goes_all_the_way(quantizers, folder, capsys):
    """Converted, trained, resumed, deployed, checked; its step moves, and plain NNabla agrees."""
    assert run(capsys, "convert", "float.nnp", "-o", "d.nnp", "--quantizers", quantizers)[0] == 0
    assert run(capsys, "train", "d.nnp", "--recipe", "r.yaml", "-o", "t.nnp")[0] == 0
    state = nn.graph_def.load("t.nnp", parameter_only=False).get_parameters(grad_only=False)
    steps = {name: v.d for name, v in state.items() if re.search(r"/dqa/\d/step$", name)}
    assert len(steps) == {"lsq:2": 2, "lsq:2,4,8": 6}.get(quantizers, 4)
    assert all((step > 0).all() for step in steps.values())
    assert run(capsys, "deploy", "t.nnp", "-o", "s.nnp")[0] == 0
    code, out, _ = run(capsys, "check", "s.nnp")
    assert (code, out[-1].endswith("no NaN or infinity")) == (0, True)
    scores = []
    for name in ("t.nnp", "s.nnp"):
        code, out, _ = run(capsys, "evaluate", name, "--data", "data.npz")
        assert code == 0
        scores.append([line.replace(name, "") for line in out if "accuracy" in line])
    assert scores[0] == scores[1] != []
    x = np.load("data.npz")["x"][:4]
    outputs = []
    for hard in (NetworkFile.read("t.nnp"), NetworkFile.read("s.nnp")):
        with dqa.hard():
            built = Program(hard).build("net", 4)
        (name,) = built.inputs
        built.inputs[name].d = x
        (y,) = built.outputs.values()
        y.forward()
        outputs.append(y.d.copy())
    np.testing.assert_array_equal(*outputs)


def test_every_command_takes_the_limit(folder, capsys):
    run(capsys, "convert", "float.nnp", "-o", "d.nnp")
    common = {"train": ["--recipe", "r.yaml"], "evaluate": ["--data", "data.npz"]}
    for command in COMMANDS:
        arguments = [command, "d.nnp", *common.get(command, [])]
        text = refused(capsys, *arguments, "--max-bytes", "5000")
        assert "5,000 allowed" in text
        assert "--max-bytes" in text
        assert "max_bytes" not in text


def test_batches_of_nothing(folder, capsys):
    arguments = ["evaluate", "float.nnp", "--data", "data.npz"]
    assert "--batch-size" in refused(capsys, *arguments, "--batch-size", "0")
    assert "--limit" in refused(capsys, *arguments, "--limit", "0")
    assert "--scale" in refused(capsys, *arguments, "--scale", "0")
    assert "--input: no network has an input 'q'" in refused(capsys, *arguments, "--input", "q=x")


def test_images_of_another_size(folder, capsys):
    for name in "abc":
        (folder / "photos" / name).mkdir(parents=True)
        for i in range(8):
            pixels = np.random.RandomState(i).randint(0, 255, (9, 9), np.uint8)
            Image.fromarray(pixels).save(folder / "photos" / name / f"{i}.png")
    code, out, _ = run(capsys, "evaluate", "float.nnp", "--data", "photos")
    assert (code, "accuracy" in out[0]) == (0, True)
    run(capsys, "convert", "float.nnp", "-o", "d.nnp")
    code, _, _ = run(
        capsys, "deploy", "d.nnp", "-o", "s.nnp", "--allow-untrained", "--bn-data", "photos"
    )
    assert code == 0


def test_all_samples_make_new_statistics(folder, capsys, monkeypatch):
    seen = []
    found = deploy.input_batches
    monkeypatch.setattr(deploy, "input_batches", lambda *a: seen.append(a[3] * a[4]) or found(*a))
    run(capsys, "convert", "float.nnp", "-o", "d.nnp")
    rng = np.random.RandomState(0)
    np.savez("many.npz", x=rng.randn(200, 1, 6, 6).astype(np.float32), y=rng.randint(0, 3, 200))
    arguments = ["deploy", "d.nnp", "-o", "s.nnp", "--allow-untrained", "--bn-data", "many.npz"]
    assert run(capsys, *arguments, "--bn-samples", "150")[0] == 0
    assert seen == [150]


def test_where_a_training_may_go(folder, capsys):
    run(capsys, "convert", "float.nnp", "-o", "d.nnp")
    train = ["train", "d.nnp", "--recipe", "r.yaml", "-o"]
    assert "-o out.npp: is no .nnp file" in refused(capsys, *train, "out.npp")
    assert run(capsys, *train, "lr-0.1", "--set", "epochs=1")[0] == 0
    assert run(capsys, *train, "t.nnp", "--set", "epochs=1")[0] == 0
    line = refused(capsys, *train, "t.nnp", "--set", "epochs=1", "--resume")
    assert line == "nnabla-dqa: t.nnp: the training has ended; --force writes it again"


@pytest.mark.parametrize("key", ["output", "train_network"])
def test_errors_about_a_recipe_name_it(key, folder, capsys):
    run(capsys, "convert", "float.nnp", "-o", "d.nnp")
    line = refused(
        capsys, "train", "d.nnp", "--recipe", "r.yaml", "-o", "t.nnp", "--set", f"{key}=gone"
    )
    assert line.startswith(f"nnabla-dqa: r.yaml: key '{key}': ")


def test_yaml_that_is_broken(folder, capsys):
    Path("r.yaml").write_text("data: [a\nb: c")
    line = refused(capsys, "train", "float.nnp", "--recipe", "r.yaml")
    assert "r.yaml: not YAML" in line
    assert "unicode" not in line
    assert "line 2" in line


def test_data_are_waited_for():
    epoch = Epoch(1, 0.5, 0.1, False, "", None, 1.0, waited_seconds=0.9, loaded_per_second=5)
    assert epoch_line(epoch, 2).endswith("(1 s)")
    slow = dataclasses.replace(epoch, seconds=5.0, waited_seconds=1.0)
    assert "1 of them for data" in epoch_line(slow, 2)


def test_processes_that_may_not_communicate(folder, capsys, monkeypatch):
    run(capsys, "convert", "float.nnp", "-o", "d.nnp")
    monkeypatch.setenv("PMI_SIZE", "2")
    line = refused(capsys, "train", "d.nnp", "--recipe", "r.yaml", "--parallel", "none")
    assert line.startswith("nnabla-dqa: MPICH or Intel MPI started 2 processes, but")
    assert "--parallel auto" in line


class TestWhatIsThereStays:
    """A run that is resumed writes over nothing that it did not write without being told to."""

    def test_the_file_of_another_training(self, folder, capsys):
        run(capsys, "convert", "float.nnp", "-q", "minmax:2", "-o", "c.nnp")
        train = ("train", "c.nnp", "--recipe", "r.yaml")
        assert run(capsys, *train, "-o", "long.nnp")[0] == 0
        assert run(capsys, *train, "--set", "epochs=1", "-o", "s.nnp", "--run", "r")[0] == 0
        for other in ("long.nnp", "float.nnp"):
            before = Path(other).read_bytes()
            code, _, err = run(capsys, "train", "-o", other, "--run", "r", "--resume")
            assert (code, Path(other).read_bytes()) == (2, before)
            assert other in err[-1]
            assert "--force" in err[-1]
        code, _, _ = run(capsys, "train", "-o", "s.nnp", "--run", "r", "--resume", "--force")
        assert code == 0


@pytest.mark.parametrize(
    ("keys", "line", "message"),
    [
        (["bn_statistics=deploy"], True, False),
        (["update_normalization=50"], True, False),
        (["bn_statistics=off", "update_normalization=50"], False, True),
        (["bn_statistics=hard", "hard_fraction=0.5", "update_normalization=50"], False, False),
    ],
)
def test_new_statistics_are_told_where_there_are_some(folder, capsys, keys, line, message):
    run(capsys, "convert", "float.nnp", "-q", "minmax:2,4,8", "-o", "c.nnp")
    train = ["train", "c.nnp", "--recipe", "r.yaml", "-o", "t.nnp", "--set", "data.holdout=0.2"]
    code, out, err = run(capsys, *train, *(word for key in keys for word in ("--set", key)))
    assert code == 0, err
    assert ("with new statistics: accuracy" in "\n".join(out)) == line
    unused = "'update_normalization' of the recipe has no effect here"
    assert (unused in "\n".join(err)) == message


def test_a_scale_without_pixels_is_an_error_unless_it_changes_nothing(folder, capsys):
    evaluate = ("evaluate", "float.nnp", "--data", "data.npz")
    error = refused(capsys, *evaluate, "--scale", "0.5")
    assert "data.npz: scale=0.5 is for pixels, uint8 with two axes or more" in error
    assert "x float32 of shape (1, 6, 6)" in error
    assert run(capsys, *evaluate, "--scale", "1")[:2] == run(capsys, *evaluate)[:2]


def test_options_for_data_need_data(folder, capsys):
    for option in (("--scale", "3"), ("--input", "x=y")):
        error = refused(capsys, "check", "float.nnp", *option)
        assert "--scale and --input say something about --data only" in error


def class_folders(folder, *names):
    for name in names:
        (folder / "photos" / name).mkdir(parents=True)
        for i in range(8):
            pixels = np.full((6, 6), 40 * int(name) + i, np.uint8)
            Image.fromarray(pixels).save(folder / "photos" / name / f"{i}.png")


@pytest.mark.filterwarnings("default:.*has 2 classes:UserWarning")
def test_fewer_classes_than_the_network_has(folder, capsys):
    class_folders(folder, "1", "2")
    code, _, err = run(capsys, "evaluate", "float.nnp", "--data", "photos")
    assert code == 0, err
    assert (
        "photos: has 2 classes, the network has 3; they are numbered in order, from 0 (1)" in err[0]
    )
    class_folders(folder, "3", "4")
    error = refused(capsys, "evaluate", "float.nnp", "--data", "photos")
    assert "photos: has 4 classes, the network has 3" in error


def test_a_limit_of_class_folders_takes_some_of_each(folder, capsys, monkeypatch):
    class_folders(folder, "0", "1", "2")
    seen = []
    from nnabla_dqa.training.tasks import file_scores

    original = file_scores.evaluate

    def looked_at(tasks, samples, *rest):
        seen.extend(samples.batch(np.arange(len(samples)))["y"].ravel().tolist())
        return original(tasks, samples, *rest)

    monkeypatch.setattr(file_scores, "evaluate", looked_at)
    assert run(capsys, "evaluate", "float.nnp", "--data", "photos", "--limit", "12")[0] == 0
    assert len(seen) == 12
    assert set(seen) == {0, 1, 2}
