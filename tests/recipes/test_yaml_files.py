"""Recipes that build on others."""

from __future__ import annotations

import pytest

from nnabla_dqa.recipes.checks import RecipeError
from nnabla_dqa.recipes.recipe import Recipe
from nnabla_dqa.recipes.yaml_files import merged, read_recipe
from tests.training.files import one_line


def write(folder, **files):
    """YAML files by name; the path of the first."""
    folder.mkdir(exist_ok=True)
    for name, text in files.items():
        (folder / f"{name}.yaml").write_text(text)
    return folder / f"{next(iter(files))}.yaml"


def refused(path):
    with pytest.raises(RecipeError) as error:
        read_recipe(path)
    return one_line(error)


def test_mappings_are_merged_key_by_key_and_all_else_is_replaced():
    below = {"a": {"b": 1, "c": {"d": 2}}, "e": [1, 2], "f": 3}
    above = {"a": {"c": {"g": 4}, "b": None}, "e": [5], "h": {}}
    before = repr(below)
    assert merged(below, above) == {
        "a": {"b": None, "c": {"d": 2, "g": 4}},
        "e": [5],
        "f": 3,
        "h": {},
    }
    assert repr(below) == before
    assert merged({"a": {"b": 1}}, {"a": 2}) == {"a": 2}
    assert merged({"a": 1}, {"a": {"b": 2}}) == {"a": {"b": 2}}
    assert merged({"type": "A", "b": 1}, {"type": "C"}) == {"type": "C"}
    assert merged({"type": "A", "b": 1}, {"b": 2}) == {"type": "A", "b": 2}


def test_bases_of_bases_beside_the_recipe_that_names_them(tmp_path, monkeypatch):
    write(tmp_path, common="epochs: 5\nseed: 1\ndata: {train: x, workers: 0}")
    write(tmp_path / "sub", middle="base: ../common.yaml\nseed: 2\nmodel: {name: resnet8_32}")
    top = write(tmp_path / "sub", top="base: middle.yaml\nmodel: {width: 0.5}\n")
    monkeypatch.chdir(tmp_path)
    expected = {
        "epochs": 5,
        "seed": 2,
        "data": {"train": str(tmp_path / "x"), "workers": 0},
        "model": {"name": "resnet8_32", "width": 0.5},
    }
    assert read_recipe(top) == read_recipe("sub/top.yaml") == expected
    changes = {"model": {"width": 0.25}, "data": {"train": "y"}}
    made = Recipe.from_yaml(top, changes)
    assert (made.model.width, made.model.name) == (0.25, "resnet8_32")
    assert (made.data.train, made.data.workers, made.epochs) == (str(tmp_path / "y"), 0, 5)


def test_short_forms_are_merged_too(tmp_path):
    """A base's ``model: name`` keeps its name under ``model: {width: ...}``, and the reverse."""
    write(tmp_path, base="data: images\nmodel: resnet8_32")
    top = write(tmp_path, top="base: base.yaml\nmodel: {width: 0.5}\ndata: {workers: 0}")
    made = Recipe.from_yaml(top, {"model": "resnet20_32", "data": {"limit": 4}})
    assert (made.model.name, made.model.width) == ("resnet20_32", 0.5)
    assert (made.data.workers, made.data.limit) == (0, 4)
    assert made.data.train == str(tmp_path / "images")


def test_circles(tmp_path):
    own = write(tmp_path, own="base: own.yaml\nepochs: 3")
    assert "leads in a circle" in refused(own)
    first = write(tmp_path, first="base: second.yaml", second="base: ./first.yaml")
    assert "leads in a circle" in refused(first)


@pytest.mark.parametrize("base", ["gone.yaml", "''", "[a]", "3", "/", "null"])
def test_a_base_that_is_not_there(base, tmp_path):
    path = write(tmp_path, top=f"base: {base}\nepochs: 3")
    message = refused(path)
    assert message.startswith(f"{path}: key 'base': there is no file")


@pytest.mark.parametrize("content", ["", "- a", "text"])
def test_a_base_that_is_no_mapping(content, tmp_path):
    path = write(tmp_path, top="base: below.yaml\nepochs: 3", below=content)
    assert "below.yaml is no mapping" in refused(path)


def test_damage_names_the_file_that_has_it(tmp_path):
    path = write(tmp_path, top="base: below.yaml", below="epochs: 1\nepochs: 2")
    assert f"{tmp_path}/below.yaml: not YAML: key 'epochs' is there twice" in refused(path)
