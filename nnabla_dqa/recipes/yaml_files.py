"""Recipes on disk: YAML, with other recipes as their base and paths beside them."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Dict

from nnabla_dqa._util.files import PathLike, read_yaml
from nnabla_dqa.recipes.checks import RecipeError

_SHORT = {"data": "train", "model": "name", "solver": "type"}
"""Keys that may be text alone, and what the text then is."""


def read_recipe(path: PathLike, _depth: int = 0) -> Any:
    """The content of a recipe's YAML over that of its bases.

    Paths are relative to the file that names them, and absolute in the result.

    Raises:
        RecipeError: Not YAML, or a base that is not there or its own base.
        OSError: The file cannot be read.
    """
    path = Path(path)
    try:
        content = read_yaml(path)
    except ValueError as error:
        raise RecipeError(str(error)) from None
    if not isinstance(content, dict):
        return content
    content = placed(spelled_out(content), path.parent)
    if "base" not in content:
        return content
    base = path.parent / str(content.pop("base"))
    if _depth > 8:
        raise RecipeError(f"{path}: key 'base' leads in a circle")
    if not base.is_file():
        raise RecipeError(f"{path}: key 'base': there is no file {base}")
    below = read_recipe(base, _depth + 1)
    if not isinstance(below, dict):
        raise RecipeError(f"{path}: key 'base': {base} is no mapping of keys")
    return merged(below, content)


def spelled_out(content: Mapping[str, Any]) -> Dict[str, Any]:
    """``content`` with keys that are text alone as mappings, which can be merged key by key."""
    return {
        key: {_SHORT[key]: value} if key in _SHORT and isinstance(value, str) else value
        for key, value in content.items()
    }


def placed(content: Mapping[str, Any], folder: PathLike) -> Dict[str, Any]:
    """``content`` with its paths, if relative, taken from ``folder``."""

    def place(value: Any) -> Any:
        if not isinstance(value, str):
            return value
        return os.path.abspath(os.path.join(folder, os.path.expanduser(value)))

    result = dict(content)
    named = {key: result.get(key) for key in ("teacher", "init", "network")}
    if not is_nnp(named["network"]):
        del named["network"]
    result.update({key: place(value) for key, value in named.items() if key in result})
    if isinstance(result.get("data"), Mapping):
        result["data"] = {
            key: place(value) if key in ("train", "validation") else value
            for key, value in result["data"].items()
        }
    return result


def is_nnp(value: Any) -> bool:
    """Whether a value names an NNP file."""
    return isinstance(value, (str, Path)) and str(value).lower().endswith(".nnp")


def merged(below: Any, above: Any) -> Any:
    """``below`` with the keys of ``above`` in their places; mappings are merged key by key.

    Mappings of another ``type`` have nothing in common and are replaced.
    """
    if not isinstance(below, Mapping) or not isinstance(above, Mapping):
        return above
    if above.get("type", below.get("type")) != below.get("type"):
        return above
    result = dict(below)
    for key, value in above.items():
        result[key] = merged(result[key], value) if key in result else value
    return result
