"""The rows of a CSV, and its cells that name files: images, ``.npy`` and nested CSV of numbers."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Callable, Iterator, List, Sequence, Tuple

import numpy as np

from nnabla_dqa.data.arrays import first_not_finite, is_pixels, read_npy
from nnabla_dqa.data.base import DataError, Shape
from nnabla_dqa.data.photos.decode_pillow import read_image

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif")
SUFFIXES = (*IMAGE_SUFFIXES, ".npy", ".csv")


class FileColumn:
    """Files of one shape that are read when they are asked for.

    Args:
        files: At least one; the first is read at once and gives the shape.
        place: Where in the CSV the file of a row is named, for error messages.
        scale: What pixels are multiplied by.

    Raises:
        DataError: The first file cannot be read.
    """

    def __init__(self, files: Sequence[str], place: Callable[[int], str], scale: float) -> None:
        self._files = files
        self._place = place
        first = self._load(0)
        self._shape = first.shape
        self._pixels = is_pixels(first.dtype, first.shape)
        # As NNabla's reader does: numbers in an .npy are taken as they are.
        is_image = self._pixels and not str(files[0]).lower().endswith(".npy")
        self._scale = np.float32(scale if is_image else 1.0)

    @property
    def shape(self) -> Shape:
        """Of one sample."""
        return self._shape

    def __len__(self) -> int:
        return len(self._files)

    def read(self, rows: np.ndarray) -> np.ndarray:
        """float32, ``(len(rows), *shape)``.

        Raises:
            DataError: A file is gone, cannot be read, or differs in shape or kind.
        """
        values = np.empty((len(rows), *self._shape), np.float32)
        for i, row in enumerate(rows):
            value = self._load(row)
            if value.shape != self._shape or is_pixels(value.dtype, value.shape) != self._pixels:
                raise DataError(
                    f"{self._place(row)}: {self._files[row]} is {value.dtype} of shape"
                    f" {value.shape}; the first row's file has shape {self._shape}, and all need"
                    " the same"
                )
            values[i] = value
        values *= self._scale
        return values

    def _load(self, row: int) -> np.ndarray:
        try:
            return _load_file(Path(self._files[row]))
        except (DataError, OSError) as error:
            raise DataError(f"{self._place(row)}: {error}") from None


def _load_file(path: Path) -> np.ndarray:
    """The array in a file that a cell names; a single number gets the shape (1,)."""
    suffix = path.suffix.lower()
    values: np.ndarray
    if suffix in IMAGE_SUFFIXES:
        return read_image(path)
    if suffix == ".npy":
        with path.open("rb") as stream:
            values = np.atleast_1d(read_npy(stream, path.stat().st_size, str(path)))
    else:
        values = _load_numbers(path)
    if first_not_finite(values) is not None:
        raise DataError(f"{path}: holds NaN, an infinity or a number above float32's range")
    return values


def _load_numbers(path: Path) -> np.ndarray:
    rows: List[List[float]] = []
    for line, cells in read_rows(path):
        try:
            rows.append([float(cell) for cell in cells])
        except ValueError as error:
            raise DataError(f"{path}, line {line}: {error}; only numbers are needed") from None
        if len(rows[-1]) != len(rows[0]):
            raise DataError(
                f"{path}, line {line}: has {len(cells)} cells; the first line has {len(rows[0])}"
            )
    if not rows:
        raise DataError(f"{path}: holds no numbers")
    return np.array(rows)


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
                line = reader.line_num
                raise DataError(f"{path}, line {line}: is not CSV text: {error}") from None
    except UnicodeDecodeError:
        line = _undecodable_line(path)
        raise DataError(f"{path}, line {line}: is not UTF-8; save it as UTF-8") from None


def _undecodable_line(path: Path) -> int:
    with path.open("rb") as stream:
        for line, content in enumerate(stream, 1):
            try:
                content.decode("utf-8")
            except UnicodeDecodeError:
                return line
    return 1
