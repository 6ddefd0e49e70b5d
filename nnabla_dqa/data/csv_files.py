"""NNabla's CSV data sets, which Neural Network Console reads and writes.

A row is a sample. A cell is a number, or the path of a file with an image or
an array, relative to the CSV's folder.
"""

from __future__ import annotations

import abc
import array
import os
from pathlib import Path
from typing import Dict, List, Optional, Sequence

import numpy as np

from nnabla_dqa.data.arrays import ArrayColumn, first_not_finite
from nnabla_dqa.data.base import Column, ColumnData, DataError, check_scale
from nnabla_dqa.data.csv_cells import SUFFIXES, FileColumn
from nnabla_dqa.data.csv_rows import parse_header, read_rows


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
    variables, vectors = parse_header(header, path)
    parsers: Dict[str, _Parser] = {}
    for line, cells in rows:
        if len(cells) != len(header):
            raise DataError(
                f"{path}, line {line}: has {len(cells)} cells; the header has {len(header)}"
            )
        for name, columns in variables.items():
            if name not in parsers:
                number = name in vectors or _is_number(cells[columns[0]])
                kind = _Numbers if number else _Paths
                parsers[name] = kind(path, [header[c] for c in columns], columns)
            parsers[name].add(line, cells)
    if not parsers:
        raise DataError(f"{path}: has a header and no rows; each further line is a sample")
    return ColumnData({name: parsers[name].column(name, factor) for name in variables}, str(path))


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True


class _Parser(abc.ABC):
    """Collects the cells of one variable."""

    def __init__(self, path: Path, headers: Sequence[str], columns: Sequence[int]) -> None:
        self._path = path
        self._headers = headers
        self._columns = columns
        self._lines = array.array("q")

    def _where(self, line: int, position: int = 0) -> str:
        column, header = self._columns[position] + 1, self._headers[position]
        return f"{self._path}, line {line}, column {column} ({header!r})"

    @abc.abstractmethod
    def add(self, line: int, cells: Sequence[str]) -> None:
        """Take the row that ends on ``line``."""

    @abc.abstractmethod
    def column(self, name: str, scale: float) -> Column:
        """All rows taken, as the column ``name``."""


class _Numbers(_Parser):
    def __init__(self, path: Path, headers: Sequence[str], columns: Sequence[int]) -> None:
        super().__init__(path, headers, columns)
        # Not a list: a Python float takes four times the memory.
        self._values = array.array("d")

    def add(self, line: int, cells: Sequence[str]) -> None:
        own = [cells[column] for column in self._columns]
        try:
            self._values.extend(map(float, own))
        except ValueError:
            wrong = next(i for i, cell in enumerate(own) if not _is_number(cell))
            raise DataError(f"{self._where(line, wrong)}: {own[wrong]!r} is not a number") from None
        self._lines.append(line)

    def column(self, name: str, scale: float) -> Column:
        values = np.frombuffer(self._values).reshape(-1, len(self._columns))
        row = first_not_finite(values)
        if row is not None:
            limit = np.finfo(np.float32).max
            wrong = next(i for i, value in enumerate(values[row]) if not abs(value) <= limit)
            raise DataError(
                f"{self._where(self._lines[row], wrong)}: {values[row, wrong]} is not a finite"
                " number of float32"
            )
        return ArrayColumn(values, scale, str(self._path), name)


class _Paths(_Parser):
    def __init__(self, path: Path, headers: Sequence[str], columns: Sequence[int]) -> None:
        super().__init__(path, headers, columns)
        self._files: List[str] = []

    def add(self, line: int, cells: Sequence[str]) -> None:
        cell = cells[self._columns[0]]
        # Neural Network Console writes the separators of Windows.
        file = self._path.parent / cell.replace("\\", "/")
        if file.suffix.lower() not in SUFFIXES:
            raise DataError(
                f"{self._where(line)}: {cell!r} is neither a number nor the path of a file that is"
                f" read: {', '.join(SUFFIXES)}"
            )
        if not os.path.isfile(file):
            raise DataError(f"{self._where(line)}: there is no file {file}")
        self._files.append(str(file))
        self._lines.append(line)

    def column(self, name: str, scale: float) -> Column:
        return FileColumn(self._files, self._place, scale)

    def _place(self, row: int) -> str:
        return self._where(self._lines[row])
