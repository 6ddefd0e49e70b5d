"""Data made of columns that are read independently of each other."""

from __future__ import annotations

from typing import Dict, Mapping, Protocol, Tuple, runtime_checkable

import numpy as np

from nnabla_dqa.data.base import Data, DataError, Raw, Shape


class Column(Protocol):
    """One column: N values of one shape, in memory or in files."""

    @property
    def shape(self) -> Shape:
        """Of one sample."""

    def __len__(self) -> int:
        """N."""

    def read(self, rows: np.ndarray) -> np.ndarray:
        """float32, ``(len(rows), *shape)``."""


@runtime_checkable
class RawColumn(Column, Protocol):
    """A column that can give its values before they are scaled."""

    def read_raw(self, rows: np.ndarray) -> Raw:
        """``(len(rows), *shape)``."""


class ColumnData(Data):
    """Data whose columns are read independently of each other.

    Args:
        columns: At least one; all of the same length, at least 1.
        source: What error messages call the data, such as its file.
        classes: The name of each class number, if they are known.

    Raises:
        DataError: No column, no sample, or columns of different lengths.
    """

    def __init__(
        self, columns: Mapping[str, Column], source: str, classes: Tuple[str, ...] = ()
    ) -> None:
        if not columns:
            raise DataError(f"{source}: holds no columns; at least one is needed")
        first, size = next((name, len(column)) for name, column in columns.items())
        for name, column in columns.items():
            if len(column) != size:
                raise DataError(
                    f"{source}: column {name} has {len(column)} samples and {first} has {size};"
                    " all columns need the same number"
                )
        if not size:
            raise DataError(f"{source}: holds no samples; at least one is needed")
        self._columns = dict(columns)
        self._size = size
        self.classes = tuple(classes)

    def __len__(self) -> int:
        return self._size

    @property
    def shapes(self) -> Dict[str, Shape]:
        return {name: column.shape for name, column in self._columns.items()}

    def _read(self, rows: np.ndarray) -> Dict[str, np.ndarray]:
        return {name: column.read(rows) for name, column in self._columns.items()}

    def _read_raw(self, rows: np.ndarray) -> Dict[str, Raw]:
        return {
            name: column.read_raw(rows)
            if isinstance(column, RawColumn)
            else (column.read(rows), None)
            for name, column in self._columns.items()
        }
