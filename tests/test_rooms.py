"""The folders of the package: imports between them go one way, and none is too full."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Iterator, Tuple

import nnabla_dqa

PACKAGE = Path(nnabla_dqa.__file__).parent
# Bottom to top: a room imports from those before it. The package's own __init__ is above all.
ROOMS = (
    *("_version", "_util", "schedules", "quantization", "mixing", "backends", "layers"),
    *("budget", "parametric_functions", "regularization", "solver"),
    *("nnp_format", "export", "graph", "onednn", "nnp", "data", "distributed"),
    *("models", "recipes", "training", "reporting", "commands", "cli", "__main__"),
)
MODULES = 14


def rooms(package: Path) -> set[str]:
    """Folders with Python in them, and loose modules."""
    loose = {path.stem for path in package.glob("*.py")} - {"__init__"}
    return loose | {path.parent.name for path in package.glob("*/__init__.py")}


def statements(node: ast.AST) -> Iterator[ast.AST]:
    """All below ``node``, in functions too, but for what only type checkers read."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and ast.unparse(child.test).endswith("TYPE_CHECKING"):
            for other in child.orelse:
                yield other
                yield from statements(other)
        else:
            yield child
            yield from statements(child)


def imported(node: ast.AST, inside: Tuple[str, ...]) -> Iterator[Tuple[str, ...]]:
    """Dotted names that a statement in the package ``inside`` imports."""
    if isinstance(node, ast.Import):
        yield from (tuple(alias.name.split(".")) for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        above = inside[: len(inside) - node.level + 1] if node.level else ()
        module = (*above, *(node.module.split(".") if node.module else ()))
        yield from ((*module, alias.name) for alias in node.names)


def upward(package: Path, order: Tuple[str, ...]) -> Iterator[str]:
    """A line for each import of a room that is not below, and of the package itself."""
    for path in sorted(package.rglob("*.py")):
        parts = path.relative_to(package).with_suffix("").parts
        if parts == ("__init__",):
            continue
        tree = ast.parse(path.read_text("utf-8"))
        for node in statements(tree):
            for name in imported(node, (package.name, *parts[:-1])):
                if name[0] != package.name:
                    continue
                room = name[1] if len(name) > 1 else ""
                # Whatever is no room is a name of the package's __init__.
                if room not in order or order.index(room) > order.index(parts[0]):
                    yield f"{path.relative_to(package)}:{node.lineno} imports {'.'.join(name)}"


def too_full(package: Path, most: int) -> Iterator[str]:
    """A line for each folder with more than ``most`` modules."""
    for folder in sorted({path.parent for path in package.rglob("*.py")}):
        count = sum(path.name != "__init__.py" for path in folder.glob("*.py"))
        if count > most:
            yield f"{folder.relative_to(package.parent)}: {count} modules"


def test_every_room_has_its_place_in_the_order():
    assert rooms(PACKAGE) == set(ROOMS)


def test_imports_go_down():
    assert list(upward(PACKAGE, ROOMS)) == []


def test_no_folder_is_too_full():
    assert list(too_full(PACKAGE, MODULES)) == []


def test_what_is_found(tmp_path):
    """In a package with one of everything."""
    package = tmp_path / "house"
    for path, text in {
        "__init__.py": "from house.top import x\n",
        "low/__init__.py": "",
        "low/a.py": "import house.top\nimport numpy.top\nfrom house import VERSION, low\n",
        "low/b.py": "def f():\n    if f:\n        from house.top import x\n",
        "low/deep/__init__.py": "",
        "low/deep/c.py": "from ..a import x\nfrom ... import top\nfrom ...top import x\n",
        "low/d.py": "import typing\nif typing.TYPE_CHECKING:\n    import house.top\nelse:\n"
        "    import house.top as other\n",
        "top.py": "from house.low import a\nfrom house import low\nimport house\n",
    }.items():
        (package / path).parent.mkdir(parents=True, exist_ok=True)
        (package / path).write_text(text)
    assert rooms(package) == {"low", "top"}
    assert list(upward(package, ("low", "top"))) == [
        "low/a.py:1 imports house.top",
        "low/a.py:3 imports house.VERSION",
        "low/b.py:3 imports house.top.x",
        "low/d.py:5 imports house.top",
        "low/deep/c.py:2 imports house.top",
        "low/deep/c.py:3 imports house.top.x",
        "top.py:3 imports house",
    ]
    assert list(too_full(package, 2)) == ["house/low: 3 modules"]
