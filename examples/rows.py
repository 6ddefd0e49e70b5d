"""What examples/cifar/train.py and examples/imagenet/train.py share: the paper's rows by name."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any, Dict, Mapping, Optional, Sequence

from nnabla_dqa.cli import main as nnabla_dqa
from nnabla_dqa.layers.report import format_table
from nnabla_dqa.recipes.recipe import Recipe
from nnabla_dqa.recipes.yaml_files import read_recipe


def rows_in(folder: Path) -> Dict[str, Path]:
    """The recipes of a folder by name, without those that are only the base of others."""
    return {
        path.stem: path for path in sorted(folder.glob("*.yaml")) if "model" in read_recipe(path)
    }


def quantizers_of(recipe: Recipe) -> str:
    """Those of the weights, and of the activations behind a plus sign."""
    both = (recipe.quantizers, recipe.activations)
    return " + ".join(str(one) for one in both if one is not None) or "-"


def table_of(folders: Mapping[str, Path]) -> str:
    """All rows, with what the paper prints for them."""
    lines = [("data set", "row", "model", "quantizers", "lambda", "paper %", "top-5 %", "epochs")]
    for name, folder in folders.items():
        for row, path in rows_in(folder).items():
            recipe = Recipe.from_yaml(path)
            values: Dict[str, Any] = recipe.paper
            lines.append((
                name, row, recipe.model.name, quantizers_of(recipe),
                f"{recipe.strength:g}" if recipe.method == "DQA" else "-",
                str(values.get("accuracy", "-")), str(values.get("top5", "-")), str(recipe.epochs),
            ))  # fmt: skip
    return format_table(lines)


def main(
    description: str, folders: Mapping[str, Path], argv: Optional[Sequence[str]] = None
) -> int:
    """Train a row, or list the rows; the exit code of ``nnabla-dqa train``.

    Args:
        description: For ``--help``.
        folders: Recipes by data set; the first one is the default.
        argv: Default: the process's.
    """
    parser = argparse.ArgumentParser(
        description=description,
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="all other options are those of: nnabla-dqa train --help",
    )
    parser.add_argument("--row", help="its name in the list that --rows prints")
    parser.add_argument("--rows", nargs="?", const="all", choices=["all"], help="list the rows")
    first = next(iter(folders))
    if len(folders) > 1:
        parser.add_argument("--dataset", choices=list(folders), help=f"(default: {first})")
    arguments, others = parser.parse_known_args(argv)
    chosen = getattr(arguments, "dataset", None)
    if arguments.rows:
        print(table_of({chosen: folders[chosen]} if chosen else folders))
        return 0
    if arguments.row is None:
        if "--resume" in others:
            return nnabla_dqa(["train", *others])
        parser.error("--row is needed; --rows lists them")
    rows = rows_in(folders[chosen or first])
    if arguments.row not in rows:
        parser.error(f"--row {arguments.row}: is none of {', '.join(rows)}")
    return nnabla_dqa(["train", "--recipe", str(rows[arguments.row]), *others])
