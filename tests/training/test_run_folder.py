"""The folder of a run: begun once, read back, refused when damaged."""

from __future__ import annotations

import json
import os
import subprocess

import nnabla as nn
import pytest

from nnabla_dqa.backends import available_backends, backend
from nnabla_dqa.training import run_folder
from nnabla_dqa.training.run_folder import RunError, RunFolder, commit, environment, write_json
from tests.training.experiments import experiment
from tests.training.files import one_line


def refused(call, *arguments):
    with pytest.raises(RunError) as error:
        call(*arguments)
    return one_line(error)


def test_a_new_folder_keeps_the_recipe(tmp_path):
    made = experiment(tmp_path, quantizers="minmax:2,4", **{"lambda": 1e-5, "seed": 3})
    for place in (RunFolder(tmp_path / "a" / "b"), RunFolder(str(tmp_path / "empty"))):
        if place.path.name == "empty":
            place.path.mkdir()
        place.check_new()
        place.begin(made)
        assert os.listdir(place.path) == ["recipe.yaml"]
        assert place.read_recipe() == made
        place.check_may_begin(made, resume=True)
        assert place.starts() == []
        assert place.results() is None


def test_folders_that_are_taken(tmp_path):
    made = experiment(tmp_path)
    RunFolder(tmp_path / "run").begin(made)
    (tmp_path / "run" / "recipe.yaml").write_text("precious")
    assert "--resume begins it" in refused(RunFolder(tmp_path / "run").begin, made)
    assert (tmp_path / "run" / "recipe.yaml").read_text() == "precious"
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.tex").touch()
    (tmp_path / "file").touch()
    for name in ("other", "file"):
        assert "no empty folder" in refused(RunFolder(tmp_path / name).begin, made)
        assert "no empty folder" in refused(RunFolder(tmp_path / name).check_new)
    assert os.listdir(tmp_path / "other") == ["thesis.tex"]


def test_folders_without_a_run(tmp_path):
    for name in ("", "gone"):
        place = RunFolder(tmp_path / name)
        assert "holds no run: there is no recipe.yaml" in refused(place.read_recipe)
        assert "holds no run" in refused(place.check_may_begin, experiment(tmp_path), True)


def test_another_run(tmp_path):
    place = RunFolder(tmp_path / "run")
    place.begin(experiment(tmp_path))
    place.check_may_begin(experiment(tmp_path, data={"workers": 0}, paper={"table": 1}), True)
    for changes, expected in (
        ({"seed": 3}, "recipe.seed is 0 there and 3 here"),
        ({"data": {"limit": 5}}, "recipe.data.limit is None there and 5 here"),
        ({"quantizers": "minmax:2"}, "recipe.quantizers is None there and 'minmax:2' here"),
    ):
        message = refused(place.check_may_begin, experiment(tmp_path, **changes), True)
        assert message == f"{place.path}: holds another run: {expected}"


@pytest.mark.parametrize("content", ["a: [", "- a", "", "data: x\nepochs: 0", "\x00"])
def test_a_damaged_recipe(content, tmp_path):
    (tmp_path / "recipe.yaml").write_text(content)
    assert str(tmp_path / "recipe.yaml") in refused(RunFolder(tmp_path).read_recipe)


@pytest.mark.parametrize("content", ["{", "", "[]", "3"])
def test_damaged_json(content, tmp_path):
    place = RunFolder(tmp_path)
    for path, read in ((place.run, place.starts), (place.result, place.results)):
        path.write_text(content)
        assert refused(read).startswith(f"{path}: is no JSON")


def test_every_start_is_noted(tmp_path):
    place = RunFolder(tmp_path)
    for number in range(3):
        place.note_start({"from_step": number})
    assert [start["from_step"] for start in place.starts()] == [0, 1, 2]
    assert os.listdir(tmp_path) == ["run.json"]


def test_the_environment_can_be_written_and_says_what_figures_depend_on(tmp_path):
    told = environment(nn.get_current_context(), processes=4)
    write_json(tmp_path / "x.json", told)
    assert json.loads((tmp_path / "x.json").read_text()) == told
    assert told["context"] == ["cpu:float"]
    assert told["processes"] == 4
    assert told["mixtures"] == available_backends()["cpu"]
    with backend("portable"):
        assert environment(nn.get_current_context())["mixtures"] == "portable"
    assert told["versions"]["nnabla"] == nn.__version__
    assert set(told["versions"]) == {"python", "nnabla", "numpy", "nnabla_dqa"}


def test_the_commit_is_that_of_this_package_alone(tmp_path, monkeypatch):
    """An installed package may lie in somebody else's repository."""

    def git(*arguments):
        subprocess.run(["git", "-C", str(tmp_path), *arguments], check=True, capture_output=True)

    package = tmp_path / "package.py"
    package.write_text("1")
    monkeypatch.setattr(run_folder, "__file__", str(package))
    assert commit() is None
    git("init", "-q")
    assert commit() is None
    git("add", ".")
    git("-c", "user.name=a", "-c", "user.email=a@b", "commit", "-qm", "a")
    found = commit()
    assert len(found) == 40
    package.write_text("2")
    assert commit() == f"{found}+changes"
    monkeypatch.setenv("PATH", "")
    assert commit() is None


def test_a_folder_without_a_checkpoint_says_how_to_go_on(tmp_path):
    place = RunFolder(tmp_path / "run")
    place.begin(experiment(tmp_path))
    with pytest.raises(RunError, match=r"no checkpoint yet; --resume begins it, for another recip"):
        place.check_new()
    place.checkpoint.write_bytes(b"")
    with pytest.raises(RunError, match=r"holds a run; --resume goes on with it, or name another$"):
        place.check_new()
