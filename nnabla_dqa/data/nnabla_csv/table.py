"""The table of a CSV data set: a row is a sample, and the header names the variables.

A cell is a number, or the path of a file with an image or an array, relative to the CSV's folder.
"""

from __future__ import annotations

import array
import os
from pathlib import Path
from typing import Dict, List, Optional, Sequence

import numpy as np

from nnabla_dqa.data.arrays import ArrayColumn, first_not_finite
from nnabla_dqa.data.base import Column, ColumnData, DataError, check_scale
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
    found: Dict[str, _Cells] = {}
    for line, cells in rows:
        if len(cells) != len(header):
            raise DataError(
                f"{path}, line {line}: has {len(cells)} cells; the header has {len(header)}"
            )
        for name, columns in variables.items():
            if name not in found:
                first = next(iter(columns.values()))
                number = _SCALAR not in columns or _is_number(cells[first])
                order = [columns[index] for index in sorted(columns)]
                found[name] = (_Numbers if number else _Paths)(path, header, order)
            found[name].add(line, cells)
    if not found:
        raise DataError(f"{path}: has a header and no rows; each further line is a sample")
    return ColumnData({name: found[name].column(name, factor) for name in variables}, str(path))


def _parse_header(cells: Sequence[str], path: Path) -> Dict[str, Dict[int, int]]:
    """The columns of each variable by index, from cells ``NAME[__INDEX][:COMMENT]``.

    Columns whose cell begins with ``#`` are comments and belong to no variable.
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
    return variables


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True


class _Cells:
    """Collects the cells of one variable, row by row.

    Args:
        path: The CSV.
        header: Its first row, for error messages.
        columns: Of the variable, counted from 0.
    """

    def __init__(self, path: Path, header: Sequence[str], columns: Sequence[int]) -> None:
        self._path = path
        self._header = header
        self._columns = columns
        self._lines = array.array("q")
        # Not lists of numbers: a Python float takes four times the memory.
        self._values = array.array("d")
        self._files: List[str] = []

    def _place(self, row: int, position: int = 0) -> str:
        column = self._columns[position]
        line = self._lines[row]
        return f"{self._path}, line {line}, column {column + 1} ({self._header[column]!r})"

    def add(self, line: int, cells: Sequence[str]) -> None:
        """Take the row that ends on ``line``."""
        self._lines.append(line)
        self._take([cells[column] for column in self._columns])

    def _take(self, cells: List[str]) -> None:
        raise NotImplementedError

    def column(self, name: str, scale: float) -> Column:
        """All rows taken, as the column ``name``."""
        raise NotImplementedError


class _Numbers(_Cells):
    def _take(self, cells: List[str]) -> None:
        try:
            self._values.extend(map(float, cells))
        except ValueError:
            wrong = next(i for i, cell in enumerate(cells) if not _is_number(cell))
            place = self._place(-1, wrong)
            raise DataError(f"{place}: {cells[wrong]!r} is not a number") from None

    def column(self, name: str, scale: float) -> Column:
        values = np.frombuffer(self._values).reshape(-1, len(self._columns))
        row = first_not_finite(values)
        if row is not None:
            limit = np.finfo(np.float32).max
            wrong = next(i for i, value in enumerate(values[row]) if not abs(value) <= limit)
            place = self._place(row, wrong)
            raise DataError(f"{place}: {values[row, wrong]} is not a finite number of float32")
        return ArrayColumn(values, scale, str(self._path), name)


class _Paths(_Cells):
    def _take(self, cells: List[str]) -> None:
        # Neural Network Console writes the separators of Windows.
        file = self._path.parent / cells[0].replace("\\", "/")
        if file.suffix.lower() not in SUFFIXES:
            raise DataError(
                f"{self._place(-1)}: {cells[0]!r} is neither a number nor the path of a file that"
                f" is read: {', '.join(SUFFIXES)}"
            )
        if not os.path.isfile(file):
            raise DataError(f"{self._place(-1)}: there is no file {file}")
        self._files.append(str(file))

    def column(self, name: str, scale: float) -> Column:
        return FileColumn(self._files, self._place, scale)
