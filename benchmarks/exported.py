"""What benchmarks of exported files share: a trained file, and what they print and write."""

from __future__ import annotations

import json
import os
import platform
import warnings
from importlib.metadata import version
from pathlib import Path
from typing import Any, Callable, Dict, List, Mapping, Optional

import nnabla_dqa as dqa
from nnabla_dqa._util.tables import format_table

Row = Dict[str, Any]


def trained(folder: Path, nnp: Path, rules: Any, recipe: dqa.Recipe) -> dqa.Deployment:
    """A float NNP, converted by ``rules``, trained, and deployed to ``d.nnp`` in ``folder``."""
    dqa.convert_file(nnp, folder / "c.nnp", rules)
    quietly_trained(folder / "c.nnp", recipe, folder / "t.nnp")
    return dqa.deploy_file(folder / "t.nnp", folder / "d.nnp")


def quietly_trained(*arguments: Any, **options: Any) -> None:
    """:func:`nnabla_dqa.train` without its warnings: an epoch is short."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dqa.train(*arguments, **options)


def where(*packages: str) -> Row:
    """The machine, and the versions of Python, some packages and this one."""
    return {
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, {platform.system()}",
        "versions": {
            "python": platform.python_version(),
            **{name: version(name) for name in packages},
            "nnabla_dqa": dqa.__version__,
        },
    }


def table(rows: List[Row], columns: Mapping[str, Callable[[Row], str]]) -> str:
    """Rows for people: what each column, by its head, makes of one."""
    return format_table(
        [tuple(columns), *(tuple(f(row) for f in columns.values()) for row in rows)]
    )


def written(measured: Row, folder: Optional[Path], name: str) -> None:
    """Write what was measured to a file of this name, if there is a folder for it."""
    if folder is not None:
        (folder / name).write_text(json.dumps(measured, indent=1) + "\n")
