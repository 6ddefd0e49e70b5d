"""Recipes on disk: YAML, with other recipes as their base."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Dict

from nnabla_dqa._util.files import PathLike, read_yaml
from nnabla_dqa.recipes.checks import RecipeError

_PARTS = {"data": "source", "model": "name"}
"""Keys of an experiment that may be text alone, and what the text then is."""


def is_experiment(path: PathLike) -> bool:
    """Whether a recipe is one of an experiment: it names a model.

    Raises:
        RecipeError, OSError: As :func:`read_recipe`.
    """
    content = read_recipe(path)
    return isinstance(content, Mapping) and "model" in content


def read_plain(path: PathLike) -> Any:
    """The content of a recipe's YAML as it stands.

    Raises:
        RecipeError: Not YAML; names the file.
        OSError: The file cannot be read.
    """
    try:
        return read_yaml(path)
    except ValueError as error:
        raise RecipeError(str(error)) from None


def read_recipe(path: PathLike, _depth: int = 0) -> Any:
    """The content of a recipe's YAML, merged with those of its bases.

    Raises:
        RecipeError: Not YAML, or a base that is not there or its own base.
        OSError: The file cannot be read.
    """
    path = Path(path)
    content = read_plain(path)
    if not isinstance(content, dict):
        return content
    content = spelled_out(content)
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
    """``content`` with ``data`` and ``model`` as mappings, whose keys can be merged one by one."""
    return {
        key: {_PARTS[key]: value} if key in _PARTS and isinstance(value, str) else value
        for key, value in content.items()
    }


def merged(below: Any, above: Any) -> Any:
    """``below`` with the keys of ``above`` in their places; mappings are merged key by key."""
    if not isinstance(below, Mapping) or not isinstance(above, Mapping):
        return above
    result = dict(below)
    for key, value in above.items():
        result[key] = merged(result[key], value) if key in result else value
    return result
