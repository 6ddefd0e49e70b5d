"""Random crops and flips of small images, as CIFAR networks are trained with."""

from __future__ import annotations

from typing import Dict

import numpy as np

from nnabla_dqa._util.checks import is_int
from nnabla_dqa.data.base import Data, DataError, Raw, View, check_seed, scaled
from nnabla_dqa.data.draws import draws


class CropFlip(View):
    """Data whose images are shifted and mirrored at random in training.

    ``at_epoch(e)`` pads each image by ``pad`` zeros on every side, cuts a window
    of the original size out at one of the ``(2 * pad + 1)^2`` places, all equally
    likely, and mirrors half of the images left to right (He et al., Deep residual
    learning for image recognition, 2016, section 4.2). ``batch`` of the data
    itself gives the images as they are, for evaluation.

    Args:
        data: What is augmented. Pixels of uint8 are cropped before they are scaled.
        seed: 0 to 2^32 - 1. What happens to a sample depends on ``seed``, the
            epoch and its row in ``data`` alone.
        pad: In pixels, at least 0. The border is zeros: black, where pixels start at 0.
        column: Of the images, (C, H, W).
        flip: False for images that must not be mirrored, such as digits.

    Raises:
        DataError: An argument is out of range, or ``column`` is not there or
            does not hold images.
    """

    def __init__(
        self, data: Data, seed: int, pad: int = 4, column: str = "x", flip: bool = True
    ) -> None:
        check_seed("CropFlip", "seed", seed)
        if not is_int(pad) or pad < 0:
            raise DataError(f"CropFlip: pad={pad!r} is not a whole number from 0")
        if column not in data.shapes:
            names = ", ".join(data.shapes)
            raise DataError(f"CropFlip: there is no column {column!r}; the columns are {names}")
        if len(data.shapes[column]) != 3:
            raise DataError(
                f"CropFlip: column {column} has samples of shape {data.shapes[column]};"
                " (channels, height, width) is needed"
            )
        super().__init__(data)
        self._seed = int(seed)
        self._pad = int(pad)
        self._column = column
        self._flip = bool(flip)

    def at_epoch(self, epoch: int) -> Data:
        check_seed("at_epoch", "epoch", epoch)
        return _AtEpoch(self, int(epoch))

    def _read(self, rows: np.ndarray) -> Dict[str, np.ndarray]:
        return self._data._read(rows)

    def _read_raw(self, rows: np.ndarray) -> Dict[str, Raw]:
        return self._data._read_raw(rows)


class _AtEpoch(CropFlip):
    """The same data in one epoch."""

    def __init__(self, parent: CropFlip, epoch: int) -> None:
        super().__init__(
            parent._data.at_epoch(epoch), parent._seed, parent._pad, parent._column, parent._flip
        )
        self._parent = parent
        self._epoch = epoch

    def at_epoch(self, epoch: int) -> Data:
        return self._parent.at_epoch(epoch)

    def _read(self, rows: np.ndarray) -> Dict[str, np.ndarray]:
        return {name: scaled(raw) for name, raw in self._read_raw(rows).items()}

    def _read_raw(self, rows: np.ndarray) -> Dict[str, Raw]:
        columns = self._data._read_raw(rows)
        values, scale = columns[self._column]
        numbers = draws(self._seed, self._epoch, rows, 3)
        places = np.floor(numbers[:, :2] * (2 * self._pad + 1)).astype(np.int64)
        mirrored = (numbers[:, 2] < 0.5) & self._flip
        columns[self._column] = crop_flip(values, self._pad, places, mirrored), scale
        return columns


def crop_flip(images: np.ndarray, pad: int, places: np.ndarray, mirrored: np.ndarray) -> np.ndarray:
    """Windows of zero-padded images.

    Args:
        images: (N, C, H, W), any type.
        pad: Zeros on every side.
        places: (N, 2), the window's top and left in the padded image, 0 to ``2 * pad``.
        mirrored: (N,), bool: whether the window is mirrored left to right.

    Returns:
        As ``images``.
    """
    height, width = images.shape[2:]
    shape = (*images.shape[:2], height + 2 * pad, width + 2 * pad)
    padded = np.zeros(shape, images.dtype)
    padded[:, :, pad : pad + height, pad : pad + width] = images
    windows = np.empty(images.shape, images.dtype)
    for i, ((top, left), mirror) in enumerate(zip(places.tolist(), mirrored.tolist())):
        window = padded[i, :, top : top + height, left : left + width]
        windows[i] = window[:, :, ::-1] if mirror else window
    return windows
