"""The page "From an NNP to a 2-bit NNP": its commands run as printed and print what it shows."""

from __future__ import annotations

import dataclasses
import os
import re
import subprocess
import sys
from pathlib import Path

import nnabla as nn
import pytest

from nnabla_dqa.recipes.checks import key_of
from nnabla_dqa.recipes.parts import DataRecipe, ModelRecipe
from nnabla_dqa.recipes.recipe import Recipe

ROOT = Path(__file__).resolve().parent.parent
PAGE = (ROOT / "docs" / "nnp.md").read_text("utf-8")


def blocks(kind):
    """The fenced blocks of one kind, in order."""
    fenced = re.findall(r"^```(\w*)\n(.*?)^```$", PAGE, re.S | re.M)
    return [text for found, text in fenced if found == kind]


@pytest.fixture(scope="module")
def followed(tmp_path_factory):
    """The folder and the output of someone who copied every command."""
    folder = tmp_path_factory.mktemp("page")
    (folder / "examples").symlink_to(ROOT / "examples")
    commands = "\n".join(blocks("sh")).replace("make setup && . .venv/bin/activate\n", "")
    (recipe,) = blocks("yaml")
    head, train, tail = re.split(r"(?=nnabla-dqa train)|(?=nnabla-dqa deploy)", commands)
    script = f"set -e\n{head}\ncat > digits.yaml <<'END'\n{recipe}END\n{train}\n{tail}"
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-c", script],
        cwd=folder,
        env={**os.environ, "PATH": path},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return folder / "try", done.stdout


def number(line):
    """The accuracy in a line."""
    return float(re.search(r"accuracy (\d\.\d+)", line).group(1))


@pytest.mark.slow
def test_commands_print_what_the_page_shows(followed):
    _, out = followed
    lines = [line.rstrip() for line in out.splitlines()]
    shown = [line for block in blocks("") for line in block.splitlines() if line != "..."]
    assert len(shown) > 20
    for line in shown:
        if "accuracy" not in line:
            assert line in lines, line
            continue
        start = re.split(r":|,", line)[0]
        same = [other for other in lines if other.startswith(f"{start}:") and "accuracy" in other]
        (printed,) = same
        # Early epochs differ from machine to machine, the end hardly.
        assert abs(number(printed) - number(line)) <= (0.02 if number(line) > 0.95 else 0.3)


@pytest.mark.slow
def test_the_result_is_small_and_good(followed):
    folder, out = followed
    scores = [
        number(line)
        for line in out.splitlines()
        if line.startswith(("digits.nnp: acc", "digits_2bit.nnp: acc"))
    ]
    assert scores[0] > 0.98
    assert scores[1] > 0.96
    size = (folder / "digits_2bit.nnp").stat().st_size
    told = int(re.search(r"`digits_2bit.nnp` has ([\d,]+) bytes", PAGE).group(1).replace(",", ""))
    assert size == pytest.approx(told, rel=0.03)
    assert size < 55_400 / 6


@pytest.mark.slow
def test_the_python_on_the_page(followed, monkeypatch, capsys):
    folder, _ = followed
    monkeypatch.chdir(folder)
    files, live = blocks("python")
    exec(compile(files, "docs/nnp.md", "exec", dont_inherit=True), {})
    assert "SAWB2" in capsys.readouterr().out
    nn.clear_parameters()
    exec(compile(live, "docs/nnp.md", "exec", dont_inherit=True), {})
    names = list(nn.get_parameters())
    assert "conv1/conv/dqa/alpha" in names
    assert "fc/affine/dqa/alpha" not in names


def rows(page, start):
    """Keys and defaults of a table."""
    table = page.split(start)[1].split("\n## ")[0]
    found = re.findall(r"^\| (`[^|]*`) \| ([^|]*)\|", table, re.M)
    return {key: default.strip() for keys, default in found for key in re.findall("`(.*?)`", keys)}


def test_every_recipe_key_is_listed_with_its_default():
    page = rows((ROOT / "docs" / "experiments.md").read_text("utf-8"), "## A recipe")
    expected = {}
    kinds = (("", Recipe), ("data.", DataRecipe), ("model.", ModelRecipe))
    for prefix, field in ((p, f) for p, kind in kinds for f in dataclasses.fields(kind)):
        expected[prefix + key_of(field)] = field.default
    assert set(page) == set(expected)
    for key, default in expected.items():
        if isinstance(default, (bool, int, float, str)):
            assert page[key] == str(default).lower(), key
    assert set(rows(PAGE, "## The recipe")) <= set(expected)
