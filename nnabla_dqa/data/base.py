"""What training reads: named columns over the same samples, in mini-batches of float32."""

from __future__ import annotations

import abc
import math
from typing import Any, Dict, Optional, Tuple

import numpy as np

from nnabla_dqa._util.checks import is_int

Shape = Tuple[int, ...]

Raw = Tuple[np.ndarray, Optional[np.float32]]
"""Values of a column before they are scaled, and what they are multiplied by; None for float32."""

SCALE = 1.0 / 255.0
"""What uint8 pixels are multiplied by unless the caller says otherwise."""


class DataError(ValueError):
    """Data that cannot be used; the message names the file and what would be right.

    Args:
        message: Made one line, whatever names of files and columns bring with them.
    """

    def __init__(self, message: str) -> None:
        super().__init__(" ".join(message.splitlines()))


class MissingSubsetError(DataError):
    """A folder has no such subset; it may have the other."""


class Data(abc.ABC):
    """Named columns over the same N samples.

    Attributes:
        classes: The name of each class number; empty where the format has none.
    """

    classes: Tuple[str, ...] = ()

    @abc.abstractmethod
    def __len__(self) -> int:
        """N, at least 1."""

    @property
    @abc.abstractmethod
    def shapes(self) -> Dict[str, Shape]:
        """The shape of one sample by column: ``{"x": (1, 28, 28), "y": (1,)}``."""

    @abc.abstractmethod
    def _read(self, rows: np.ndarray) -> Dict[str, np.ndarray]:
        """The samples ``rows``, which are checked int64 indices."""

    def _read_raw(self, rows: np.ndarray) -> Dict[str, Raw]:
        """The samples ``rows``, pixels still uint8 where they are stored so."""
        return {name: (values, None) for name, values in self._read(rows).items()}

    def _select(self, rows: np.ndarray) -> Data:
        """A view of the samples ``rows``, as of :meth:`_read`."""
        return _Selection(self, rows)

    def batch(self, indices: np.ndarray) -> Dict[str, np.ndarray]:
        """The samples ``indices``, in that order.

        Args:
            indices: Whole numbers from 0 to N - 1, one axis; repetitions are allowed.

        Returns:
            For each column a float32 array of shape ``(len(indices), *shape)``.

        Raises:
            DataError: An index is out of range, or the file of a sample cannot be read.
        """
        rows = np.asarray(indices)
        if rows.ndim != 1 or (rows.size and rows.dtype.kind not in "iu"):
            raise DataError(
                f"batch: indices of shape {rows.shape} and type {rows.dtype}"
                " are not one axis of whole numbers"
            )
        if rows.size and not (rows.min() >= 0 and rows.max() < len(self)):
            wrong = rows[(rows < 0) | (rows >= len(self))][0]
            raise DataError(f"batch: there is no sample {wrong}; they are 0 to {len(self) - 1}")
        return self._read(rows.astype(np.int64))

    def at_epoch(self, epoch: int) -> Data:
        """The samples as training sees them in this epoch.

        Data that is augmented differs from epoch to epoch; all other is the same
        in every one. A sample depends on the epoch and its row, not on the
        mini-batch it comes in. Evaluation calls ``batch`` without this.

        Args:
            epoch: 0 to 2^32 - 1.

        Raises:
            DataError: ``epoch`` is out of range.
        """
        check_seed("at_epoch", "epoch", epoch)
        return self

    @property
    def skipped(self) -> Dict[str, str]:
        """Files left out so far because they cannot be read, with the reason for each."""
        return {}

    def take(self, count: int) -> Data:
        """The first ``count`` samples, as a view.

        Raises:
            DataError: ``count`` is not a whole number from 1 to N.
        """
        if not is_int(count) or not 1 <= count <= len(self):
            raise DataError(f"take: {count!r} is not a number of samples from 1 to {len(self)}")
        return self._select(np.arange(int(count)))

    def split(self, share: float, seed: int) -> Tuple[Data, Data]:
        """A random part held out, and the rest; both are views in the order of the samples.

        The same N, ``share`` and ``seed`` give the same parts on every machine.

        Args:
            share: Of the N samples, ``round(share * N)`` are held out.
            seed: 0 to 2^32 - 1.

        Returns:
            The rest, then the held-out part: disjoint, together all samples.

        Raises:
            DataError: A part would be empty, or ``seed`` is out of range.
        """
        check_seed("split", "seed", seed)
        number = isinstance(share, (int, float)) and math.isfinite(share)
        held_out = round(share * len(self)) if number else 0
        if not 0 < held_out < len(self):
            raise DataError(
                f"split: share={share!r} of {len(self)} samples leaves an empty part;"
                " use a share between 0 and 1 that gives each part a sample"
            )
        order = np.random.RandomState(seed).permutation(len(self))
        rest, part = np.sort(order[held_out:]), np.sort(order[:held_out])
        return self._select(rest), self._select(part)


class View(Data):
    """Other data, seen differently.

    Args:
        data: What is read.
    """

    def __init__(self, data: Data) -> None:
        self._data = data
        self.classes = data.classes

    def __len__(self) -> int:
        return len(self._data)

    @property
    def shapes(self) -> Dict[str, Shape]:
        return self._data.shapes

    @property
    def skipped(self) -> Dict[str, str]:
        return self._data.skipped


class _Selection(View):
    """Some samples of other data; reads nothing of its own."""

    def __init__(self, data: Data, rows: np.ndarray) -> None:
        super().__init__(data)
        self._rows = rows

    def __len__(self) -> int:
        return len(self._rows)

    def at_epoch(self, epoch: int) -> Data:
        return _Selection(self._data.at_epoch(epoch), self._rows)

    def _read(self, rows: np.ndarray) -> Dict[str, np.ndarray]:
        return self._data._read(self._rows[rows])

    def _read_raw(self, rows: np.ndarray) -> Dict[str, Raw]:
        return self._data._read_raw(self._rows[rows])


def scaled(raw: Raw) -> np.ndarray:
    """float32 of raw values."""
    values, scale = raw
    if scale is not None:
        values = values.astype(np.float32)
        values *= scale
    return values


def check_scale(scale: Optional[float]) -> float:
    """``scale``, or 1/255 for None.

    Raises:
        DataError: ``scale`` is not a finite number above 0.
    """
    if scale is None:
        return SCALE
    number = isinstance(scale, (int, float, np.number)) and not isinstance(scale, bool)
    if not number or not 0 < scale < math.inf:
        raise DataError(f"scale={scale!r} is not a number above 0, such as 1/255 or 1")
    return float(scale)


def check_seed(caller: str, name: str, value: Any) -> None:
    """Raise DataError unless ``value`` is a whole number from 0 to 2^32 - 1."""
    if not is_int(value) or not 0 <= value < 2**32:
        raise DataError(f"{caller}: {name}={value!r} is not a whole number from 0 to 2^32 - 1")
