"""Photos of any size in class folders, cropped at random in training, as for ImageNet."""

from __future__ import annotations

import copy
import dataclasses
import os
import threading
from pathlib import Path
from typing import Callable, Dict, List, Optional, Sequence, Tuple

import numpy as np

from nnabla_dqa._util.files import PathLike
from nnabla_dqa.data import opencv
from nnabla_dqa.data.base import Data, DataError, Shape, check_scale, check_seed
from nnabla_dqa.data.buffers import Buffers
from nnabla_dqa.data.crops import BOX_NUMBERS, Box, centre_box, random_box
from nnabla_dqa.data.draws import draws
from nnabla_dqa.data.folders import ClassFiles, class_files
from nnabla_dqa.data.images import read_crop
from nnabla_dqa.quantization.validation import is_int

CORRUPT = ("error", "skip")

READERS = {"pillow": read_crop, "opencv": opencv.read_crop}
"""What decodes, cuts and resizes: (path, size, choose, mirror) to uint8 (3, size, size)."""

How = Tuple[Callable[[int, int], Box], bool]
"""What becomes of a photo: its box, from width and height, and whether it is mirrored."""


def open_photos(
    folder: PathLike,
    subset: str,
    size: int,
    seed: int = 0,
    augment: bool = True,
    resize: Optional[int] = None,
    corrupt: str = "error",
    classes: Optional[Sequence[str]] = None,
    scale: Optional[float] = None,
    reader: str = "pillow",
) -> Photos:
    """``x`` of shape (3, size, size), RGB, and ``y`` of shape (1,), the class's number.

    ``at_epoch(e)`` cuts a random box out of each photo
    (:func:`nnabla_dqa.data.crops.random_box`), brings it to ``size`` and mirrors
    half of them left to right. ``batch`` of the data itself, for evaluation,
    brings the short side to ``resize`` and takes the middle.

    Args:
        folder: As :func:`nnabla_dqa.data.folders.open_folders` takes it.
        subset: ``"train"`` or ``"validation"``.
        size: In pixels.
        seed: 0 to 2^32 - 1. What a sample looks like depends on ``seed``, the
            epoch and its row alone.
        augment: False takes the middle in training, too.
        resize: At least ``size``. Default: ``round(size * 256 / 224)``.
        corrupt: What to do about a file that is not an image that can be read.
            ``"error"`` raises, ``"skip"`` takes the sample after it in training,
            and leaves it out in evaluation: such a batch is shorter. Files
            that were skipped are listed in ``skipped``.
        classes: Folder names in the order of their numbers; default: the
            training subset's, sorted.
        scale: What pixels are multiplied by; default 1/255.
        reader: ``"pillow"``, bilinear (:func:`nnabla_dqa.data.images.read_crop`), or
            ``"opencv"`` (:func:`nnabla_dqa.data.opencv.read_crop`): the same boxes,
            faster, pixels that differ a little. It turns off OpenCV's own threads
            in the whole process.

    Raises:
        DataError: An argument is out of range, the reader is not installed, or
            the folder is not one of classes of images.
    """
    if not is_int(size) or size < 1:
        raise DataError(f"open_photos: size={size!r} is not a whole number above 0")
    if resize is None:
        resize = round(size * 256 / 224)
    if not is_int(resize) or resize < size:
        raise DataError(f"open_photos: resize={resize!r} is not a whole number from size={size}")
    if corrupt not in CORRUPT:
        raise DataError(f"open_photos: corrupt={corrupt!r} is neither 'error' nor 'skip'")
    if reader not in READERS:
        raise DataError(f"open_photos: reader={reader!r} is neither 'pillow' nor 'opencv'")
    if reader == "opencv":
        opencv.require_opencv()
    if subset not in ("train", "validation"):
        raise DataError(f"open_photos: subset={subset!r} is neither 'train' nor 'validation'")
    check_seed("open_photos", "seed", seed)
    factor = np.float32(check_scale(scale))
    if not os.path.isdir(folder):
        raise DataError(f"there is no folder {os.fspath(folder)!r}")
    try:
        files = class_files(Path(folder), subset, classes)
    except OSError as error:
        raise DataError(f"{os.fspath(folder)}: cannot be read: {error}") from None
    look = Look(int(size), int(resize), int(seed), bool(augment), factor)
    return Photos(files, look, corrupt == "skip", reader)


@dataclasses.dataclass(frozen=True)
class Look:
    """How photos are seen.

    Attributes:
        size: Of a sample, in pixels.
        resize: The short side before the middle is taken.
        seed: Of the random numbers.
        augment: Whether boxes are random in training.
        scale: What pixels are multiplied by.
    """

    size: int
    resize: int
    seed: int
    augment: bool
    scale: np.float32

    def boxes(self, epoch: Optional[int], rows: np.ndarray) -> List[How]:
        """What becomes of each row in an epoch, or in evaluation, which is None."""
        if epoch is None or not self.augment:
            return [(self._middle, False)] * len(rows)
        numbers = draws(self.seed, epoch, rows, BOX_NUMBERS + 1)
        return [(_random(line[:-1]), bool(line[-1] < 0.5)) for line in numbers]

    def _middle(self, width: int, height: int) -> Box:
        return centre_box(width, height, self.size, self.resize)


def _random(numbers: np.ndarray) -> Callable[[int, int], Box]:
    return lambda width, height: random_box(width, height, numbers)


class Skipped:
    """Files that cannot be read, as several threads meet them."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._reasons: Dict[str, str] = {}

    def add(self, path: str, error: DataError) -> None:
        """Note a file; once is enough."""
        with self._lock:
            self._reasons.setdefault(path, str(error))

    def reasons(self) -> Dict[str, str]:
        """A copy: path to reason."""
        with self._lock:
            return dict(self._reasons)


class Photos(Data):
    """What :func:`open_photos` gives.

    Args:
        files: The photos and their classes.
        look: How they are seen; an attribute, too.
        skip: Whether photos that cannot be read are passed over.
        reader: One of ``READERS``.
    """

    def __init__(self, files: ClassFiles, look: Look, skip: bool, reader: str = "pillow") -> None:
        self._files = files.paths
        self._labels = np.array(files.labels, np.float32).reshape(-1, 1)
        self.look = look
        self._skip = skip
        self._read_crop = READERS[reader]
        # Rows of the folder: a view of some samples draws the same numbers for them, and
        # replaces one by another of its own, never by one that was held out.
        self._rows = np.arange(len(files.paths))
        self._epoch: Optional[int] = None
        self._skipped = Skipped()
        self._buffers = Buffers()
        self.classes = files.classes

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def shapes(self) -> Dict[str, Shape]:
        return {"x": (3, self.look.size, self.look.size), "y": (1,)}

    def plan(self, rows: np.ndarray) -> Tuple[List[str], List[How]]:
        """The files of some samples, and what becomes of them; reads nothing."""
        places = self._rows[rows]
        return [self._files[place] for place in places], self.look.boxes(self._epoch, places)

    def labels(self, rows: np.ndarray) -> np.ndarray:
        """The class numbers of some samples: float32, (len(rows), 1)."""
        labels: np.ndarray = self._labels[self._rows[rows]]
        return labels

    @property
    def skipped(self) -> Dict[str, str]:
        return self._skipped.reasons()

    def at_epoch(self, epoch: int) -> Photos:
        check_seed("at_epoch", "epoch", epoch)
        view = copy.copy(self)
        view._epoch = int(epoch)
        return view

    def _select(self, rows: np.ndarray) -> Photos:
        view = copy.copy(self)
        view._rows = self._rows[rows]
        return view

    def _read(self, rows: np.ndarray) -> Dict[str, np.ndarray]:
        size = self.look.size
        x = self._buffers.take((len(rows), 3, size, size))
        y = np.empty((len(rows), 1), np.float32)
        count = 0
        for row, how in zip(rows.tolist(), self.plan(rows)[1]):
            found, pixels = self._readable(row, how)
            if pixels is None:
                continue
            np.multiply(pixels, self.look.scale, out=x[count])
            y[count] = self.labels(np.array([found]))
            count += 1
        return {"x": x[:count], "y": y[:count]}

    def _readable(self, row: int, how: How) -> Tuple[int, Optional[np.ndarray]]:
        """The first row from ``row`` on that can be read, round the end; its pixels, (3, H, W).

        None in evaluation, if it is not ``row`` itself.
        """
        for step in range(len(self)):
            at = (row + step) % len(self)
            if step:
                how = self.plan(np.array([at]))[1][0]
            path = self._files[self._rows[at]]
            try:
                return at, self._read_crop(path, self.look.size, *how)
            except DataError as error:
                if not self._skip:
                    raise
                self._skipped.add(path, error)
            if self._epoch is None:
                return at, None
        raise DataError(f"none of the {len(self)} photos can be read; {path} is one of them")
