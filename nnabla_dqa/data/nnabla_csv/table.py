"""The table of a CSV data set: a row is a sample, and the header names the variables.

A cell is a number, or the path of a file with an image or an array, relative to the CSV's folder.
"""

from __future__ import annotations

import array
import os
from functools import partial
from pathlib import Path
from typing import Dict, List, Optional, Sequence, Tuple

import numpy as np

from nnabla_dqa.data.arrays import ArrayColumn, first_not_finite
from nnabla_dqa.data.base import DataError, check_scale
from nnabla_dqa.data.columns import Column, ColumnData
from nnabla_dqa.data.nnabla_csv.cells import SUFFIXES, FileColumn, read_rows

_SCALAR = -1
"""Stands for the index of a variable that is no vector."""


def open_csv(path: Path, scale: Optional[float] = None) -> ColumnData:
    """The variables of a CSV as columns.

    A number is a column of shape (1,); ``x__0``, ``x__1``, ... are one of shape
    (count,) in the order of the indices. Images are (channels, height, width)
    and pixels; a ``.npy`` has the shape it was saved with, a ``.csv`` of numbers
    (rows, columns). Files are read when a batch asks for them.

    Args:
        path: UTF-8, with or without a byte order mark.
        scale: What pixels are multiplied by; default 1/255.

    Raises:
        DataError: Not UTF-8, no rows, a row of another length than the header,
            a cell that is neither a finite number nor an existing file, and for
            the first row a file that cannot be read; names line and column.
    """
    factor = check_scale(scale)
    rows = read_rows(path)
    _, header = next(rows, (1, []))
    variables = _parse_header(header, path)
    place = _Places(path, header)
    # Not lists of numbers: a Python float takes four times the memory.
    numbers: Dict[str, array.array[float]] = {}
    files: Dict[str, List[str]] = {}
    for line, cells in rows:
        if len(cells) != len(header):
            raise DataError(
                f"{path}, line {line}: has {len(cells)} cells; the header has {len(header)}"
            )
        place.lines.append(line)
        for name, (columns, is_vector) in variables.items():
            own = [cells[column] for column in columns]
            if len(place.lines) == 1 and (is_vector or _is_number(own[0])):
                numbers[name] = array.array("d")
            if name in numbers:
                numbers[name].extend(_floats(own, columns, place))
            else:
                files.setdefault(name, []).append(_file(own[0], columns[0], place))
    if not place.lines:
        raise DataError(f"{path}: has a header and no rows; each further line is a sample")
    data: Dict[str, Column] = {}
    for name, (columns, _) in variables.items():
        if name in files:
            data[name] = FileColumn(files[name], partial(place, columns[0]), factor)
        else:
            values = np.frombuffer(numbers[name]).reshape(-1, len(columns))
            _check_finite(values, columns, place)
            data[name] = ArrayColumn(values, factor, str(path), name)
    return ColumnData(data, str(path))


class _Places:
    """Where a cell stands in the file, for error messages."""

    def __init__(self, path: Path, header: Sequence[str]) -> None:
        self.path = path
        self.lines = array.array("q")
        self._header = header

    def __call__(self, column: int, row: int = -1) -> str:
        line = self.lines[row]
        return f"{self.path}, line {line}, column {column + 1} ({self._header[column]!r})"


def _parse_header(cells: Sequence[str], path: Path) -> Dict[str, Tuple[List[int], bool]]:
    """The columns of each variable and whether it is a vector, whose columns are in its order.

    A cell is ``NAME[__INDEX][:COMMENT]``. One that begins with ``#`` is of no variable.
    """
    variables: Dict[str, Dict[int, int]] = {}
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
        key = int(index) if separator else _SCALAR
        known = variables.setdefault(name, {})
        if key in known or (known and _SCALAR in (key, *known)):
            raise DataError(f"{where}: {text!r} occurs twice; each variable once, each index once")
        known[key] = column
    if not variables:
        raise DataError(f"{path}, line 1: names no variable; needed is one such as x:image")
    return {
        name: ([known[index] for index in sorted(known)], _SCALAR not in known)
        for name, known in variables.items()
    }


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True


def _floats(cells: List[str], columns: Sequence[int], place: _Places) -> List[float]:
    try:
        return list(map(float, cells))
    except ValueError:
        wrong = next(i for i, cell in enumerate(cells) if not _is_number(cell))
        where = place(columns[wrong])
        raise DataError(f"{where}: {cells[wrong]!r} is not a number") from None


def _check_finite(values: np.ndarray, columns: Sequence[int], place: _Places) -> None:
    row = first_not_finite(values)
    if row is not None:
        wrong = int(np.argmin(np.abs(values[row]) <= np.finfo(np.float32).max))
        where = place(columns[wrong], row)
        raise DataError(f"{where}: {values[row, wrong]} is not a finite number of float32")


def _file(cell: str, column: int, place: _Places) -> str:
    # Neural Network Console writes the separators of Windows.
    file = place.path.parent / cell.replace("\\", "/")
    if file.suffix.lower() not in SUFFIXES:
        raise DataError(
            f"{place(column)}: {cell!r} is neither a number nor the path of a file that is read:"
            f" {', '.join(SUFFIXES)}"
        )
    if not os.path.isfile(file):
        raise DataError(f"{place(column)}: there is no file {file}")
    return str(file)
