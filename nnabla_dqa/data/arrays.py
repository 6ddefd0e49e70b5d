"""Columns in memory, and the ``.npy`` and ``.npz`` files they come from."""

from __future__ import annotations

import math
import zipfile
import zlib
from pathlib import Path
from typing import IO, Any, Dict, Mapping, Optional

import numpy as np

from nnabla_dqa._util.messages import one_line
from nnabla_dqa.data.base import DataError, Raw, Shape, check_scale, scaled
from nnabla_dqa.data.columns import ColumnData

DEFLATE_LIMIT = 1032
"""Deflate cannot shrink data by more than this factor. A file that claims more is damaged."""

_npy: Any = np.lib.format  # numpy leaves these functions without annotations


def is_pixels(dtype: np.dtype, sample_shape: Shape) -> bool:
    """Whether values are pixels, which are scaled: uint8, and a sample has two axes or more.

    Labels and vectors of uint8 are numbers like any others.
    """
    return dtype == np.uint8 and len(sample_shape) >= 2


class ArrayColumn:
    """A column in memory: pixels as uint8, everything else as float32.

    Args:
        array: ``(N, *shape)``, whole numbers, floats or bools. ``(N,)`` counts as ``(N, 1)``.
        scale: What pixels are multiplied by.
        source: What error messages call the data, such as its file.
        name: Of the column, for error messages.

    Raises:
        DataError: The array has no axis, holds something else than numbers, or
            a number that is not finite in float32.
    """

    def __init__(self, array: np.ndarray, scale: float, source: str, name: str) -> None:
        array = np.asarray(array)
        if array.dtype.kind not in "biuf":
            raise DataError(f"{source}: column {name} holds {array.dtype}; numbers are needed")
        if not array.ndim:
            raise DataError(
                f"{source}: column {name} is a single number; its first axis must be the samples"
            )
        if array.ndim == 1:
            array = array.reshape(-1, 1)
        self._scale: Optional[np.float32] = None
        if is_pixels(array.dtype, array.shape[1:]):
            self._scale = np.float32(scale)
        else:
            row = first_not_finite(array)
            if row is not None:
                raise DataError(
                    f"{source}: column {name}, row {row}: a value is NaN, infinite or above"
                    " float32's range; every number must be finite"
                )
            array = array.astype(np.float32)
        self._array = array

    @property
    def is_pixels(self) -> bool:
        """Whether it is multiplied by the scale."""
        return self._scale is not None

    @property
    def shape(self) -> Shape:
        """Of one sample."""
        return self._array.shape[1:]

    def __len__(self) -> int:
        return len(self._array)

    def read(self, rows: np.ndarray) -> np.ndarray:
        """float32, ``(len(rows), *shape)``."""
        return scaled(self.read_raw(rows))

    def read_raw(self, rows: np.ndarray) -> Raw:
        """Pixels are uint8, with their scale; all else is float32, which has none."""
        return self._array[rows], self._scale


class ArrayData(ColumnData):
    """Data in memory.

    Args:
        columns: Arrays ``(N, *shape)`` by name; ``(N,)`` counts as ``(N, 1)``.
            uint8 arrays of samples with two axes or more are pixels: they stay
            uint8 in memory and are multiplied by ``scale`` in ``batch``. All
            else becomes float32 and is not scaled.
        scale: Default 1/255. 1 gives pixels of 0 to 255.
        source: What error messages call the data, such as its file.

    Raises:
        DataError: No column, different or zero numbers of samples, something
            else than numbers, or NaN or an infinity; names the column and the
            row, counted from 0.
    """

    def __init__(
        self,
        columns: Mapping[str, np.ndarray],
        scale: Optional[float] = None,
        source: str = "ArrayData",
    ) -> None:
        factor = check_scale(scale)
        made = {name: ArrayColumn(array, factor, source, name) for name, array in columns.items()}
        super().__init__(made, source)
        if scale not in (None, 1) and not any(column.is_pixels for column in made.values()):
            found = ", ".join(
                f"{name} {np.asarray(array).dtype} of shape {np.asarray(array).shape[1:]}"
                for name, array in columns.items()
            )
            raise DataError(
                f"{source}: scale={scale:g} is for pixels, uint8 with two axes or more for each "
                f"sample, and there are none: {found}; scale the numbers in the file"
            )


def first_not_finite(array: np.ndarray) -> Optional[int]:
    """The first row with a value that float32 cannot hold as a finite number, or None."""
    if array.dtype.kind != "f":
        return None
    limit = np.finfo(np.float32).max
    # Some rows at a time: float64 and masks of a whole data set would need its memory again.
    step = max(1, 2**20 // max(1, math.prod(array.shape[1:])))
    for start in range(0, len(array), step):
        rows = array[start : start + step].astype(np.float64)
        fine = (np.abs(rows) <= limit).reshape(len(rows), -1).all(axis=1)
        if not fine.all():
            return start + int(np.argmin(fine))
    return None


def read_npy(stream: IO[bytes], size: int, name: str) -> np.ndarray:
    """The array in a ``.npy`` stream of ``size`` bytes; nothing is allocated before it is checked.

    Raises:
        DataError: Not a ``.npy``, shorter or longer than its header says, or an
            array of Python objects, which could run code when it is loaded.
    """
    try:
        version = _npy.read_magic(stream)
        if version == (1, 0):
            shape, _, dtype = _npy.read_array_header_1_0(stream)
        elif version == (2, 0):
            shape, _, dtype = _npy.read_array_header_2_0(stream)
        else:
            raise DataError(f"{name}: is a .npy of version {version}; save a plain array")
        if dtype.kind not in "biuf":
            raise DataError(f"{name}: holds {dtype}; save an array of numbers")
        expected = math.prod(shape) * dtype.itemsize
        if min(shape, default=0) < 0 or size - stream.tell() != expected:
            raise DataError(
                f"{name}: {size - stream.tell()} bytes follow the header, and shape {shape}"
                f" of {dtype} needs {expected}; save it again"
            )
        stream.seek(0)
        array: np.ndarray = np.load(stream, allow_pickle=False)
    except DataError:
        raise
    # NumPy's header parser lets through what Python's tokenizer raises, and zip streams
    # add zlib.error, BadZipFile and EOFError.
    except Exception as error:
        raise DataError(f"{name}: is not a .npy array: {one_line(error)}") from None
    return array


def open_npz(path: Path, scale: Optional[float] = None) -> ArrayData:
    """The arrays of an ``.npz`` as columns under their names.

    Args:
        path: The file.
        scale: As for :class:`ArrayData`.

    Raises:
        DataError: Not an ``.npz``, or not what :class:`ArrayData` takes.
    """
    columns: Dict[str, np.ndarray] = {}
    try:
        with zipfile.ZipFile(path) as archive:
            for info in archive.infolist():
                name = f"{path}, {info.filename}"
                if not info.filename.endswith(".npy"):
                    raise DataError(f"{name}: is not an array; numpy.savez writes .npy only")
                if info.file_size > DEFLATE_LIMIT * path.stat().st_size:
                    raise DataError(f"{name}: cannot hold the {info.file_size} bytes it claims")
                with archive.open(info) as stream:
                    columns[info.filename[:-4]] = read_npy(stream, info.file_size, name)
    except DataError:
        raise
    # zipfile raises RuntimeError for encrypted files, its NotImplementedError for odd ones.
    except (zipfile.BadZipFile, zlib.error, OSError, EOFError, RuntimeError) as error:
        raise DataError(
            f"{path}: is not an .npz that numpy.savez wrote: {one_line(error)}"
        ) from None
    return ArrayData(columns, scale, str(path))
