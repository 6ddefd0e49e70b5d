"""The rows of a CSV, and NNabla's header: ``NAME[__INDEX][:COMMENT]`` in each cell."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Dict, Iterator, List, Tuple

from nnabla_dqa.data.base import DataError

Variables = Dict[str, Tuple[int, ...]]
"""The columns of each variable, counted from 0; a vector's in the order of its indices."""


def parse_header(cells: List[str], path: Path) -> Tuple[Variables, Tuple[str, ...]]:
    """The variables that a header names.

    Columns whose cell begins with ``#`` are comments and belong to no variable.

    Args:
        cells: The first row.
        path: The file, for error messages.

    Returns:
        The variables in the order of their first columns, and the names of
        those that are vectors.

    Raises:
        DataError: An empty name, an index that is not a whole number, a name
            that occurs twice, or no variable at all.
    """
    scalars: Dict[str, int] = {}
    vectors: Dict[str, Dict[int, int]] = {}
    order: Dict[str, None] = {}
    for column, cell in enumerate(cells):
        if cell.startswith("#"):
            continue
        where = f"{path}, line 1, column {column + 1}"
        text = cell.split(":", 1)[0].strip()
        name, separator, index = text.partition("__")
        if not name:
            raise DataError(
                f"{where}: {cell!r} has no name; a cell is NAME, NAME:COMMENT or NAME__INDEX"
            )
        if separator and not (index.isascii() and index.isdigit() and len(index) < 10):
            raise DataError(
                f"{where}: {text!r} has the index {index!r}; after two underscores NNabla reads"
                " a whole number"
            )
        vector = vectors.get(name, {})
        if (
            name in scalars
            or (name in vectors and not separator)
            or (separator and int(index) in vector)
        ):
            raise DataError(f"{where}: {text!r} occurs twice; each variable once, each index once")
        order[name] = None
        if separator:
            vectors.setdefault(name, {})[int(index)] = column
        else:
            scalars[name] = column
    if not order:
        raise DataError(f"{path}, line 1: names no variable; needed is one such as x:image")
    variables = {
        name: (scalars[name],)
        if name in scalars
        else tuple(column for _, column in sorted(vectors[name].items()))
        for name in order
    }
    return variables, tuple(vectors)


def read_rows(path: Path) -> Iterator[Tuple[int, List[str]]]:
    """The rows of a CSV that are not blank, with the line each ends on, counted from 1.

    Raises:
        DataError: The file is not UTF-8 or not CSV.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as stream:
            reader = csv.reader(stream)
            try:
                for cells in reader:
                    if cells:
                        yield reader.line_num, [cell.strip() for cell in cells]
            except csv.Error as error:
                raise DataError(
                    f"{path}, line {reader.line_num}: is not CSV text: {error}"
                ) from None
    except UnicodeDecodeError:
        raise DataError(
            f"{path}, line {_undecodable(path)}: is not UTF-8; save it as UTF-8"
        ) from None


def _undecodable(path: Path) -> int:
    with path.open("rb") as stream:
        for line, content in enumerate(stream, 1):
            try:
                content.decode("utf-8")
            except UnicodeDecodeError:
                return line
    return 1
