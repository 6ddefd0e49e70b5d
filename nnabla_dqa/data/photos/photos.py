"""Photos of any size in class folders, cropped at random in training, as for ImageNet."""

from __future__ import annotations

import copy
import os
import warnings
from pathlib import Path
from typing import Dict, List, Optional, Sequence, Tuple

import numpy as np

from nnabla_dqa._util.checks import is_int
from nnabla_dqa._util.files import PathLike
from nnabla_dqa.data.base import Data, DataError, Shape, check_scale, check_seed
from nnabla_dqa.data.photos import decode_opencv, decode_pillow
from nnabla_dqa.data.photos.crops import CropPlan, Transform
from nnabla_dqa.data.photos.folders import ClassFiles, class_files

CORRUPT = ("error", "skip")

DECODERS = {"pillow": decode_pillow.read_crop, "opencv": decode_opencv.read_crop}
"""What decodes, cuts and resizes: (path, size, choose, mirror) to uint8 (3, size, size)."""


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
    decoder: str = "pillow",
    reader: Optional[str] = None,
) -> Photos:
    """``x`` of shape (3, size, size), RGB, and ``y`` of shape (1,), the class's number.

    ``at_epoch(e)`` cuts a random box out of each photo
    (:func:`nnabla_dqa.data.photos.crops.random_box`), brings it to ``size`` and mirrors
    half of them left to right. ``batch`` of the data itself, for evaluation,
    brings the short side to ``resize`` and takes the middle.

    Args:
        folder: As :func:`nnabla_dqa.data.photos.folders.open_folders` takes it.
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
        decoder: ``"pillow"``, bilinear (:func:`nnabla_dqa.data.photos.decode_pillow.read_crop`),
            or ``"opencv"`` (:func:`nnabla_dqa.data.photos.decode_opencv.read_crop`): the same
            boxes, faster, pixels that differ a little. It turns off OpenCV's own threads
            in the whole process.
        reader: The former name of ``decoder``.

    Raises:
        DataError: An argument is out of range, the decoder is not installed, or
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
    if reader is not None:
        warnings.warn("open_photos: reader is now called decoder", DeprecationWarning, stacklevel=2)
        decoder = reader
    if decoder not in DECODERS:
        raise DataError(f"open_photos: decoder={decoder!r} is neither 'pillow' nor 'opencv'")
    if decoder == "opencv":
        decode_opencv.require_opencv()
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
    plan = CropPlan(int(size), int(resize), int(seed), bool(augment))
    return Photos(files, plan, factor, corrupt == "skip", decoder)


class Photos(Data):
    """What :func:`open_photos` gives.

    Args:
        files: The photos and their classes.
        plan: How they are cropped.
        scale: What pixels are multiplied by.
        skip: Whether photos that cannot be read are passed over.
        decoder: One of ``DECODERS``.
    """

    def __init__(
        self,
        files: ClassFiles,
        plan: CropPlan,
        scale: np.float32,
        skip: bool,
        decoder: str = "pillow",
    ) -> None:
        self._files = files.paths
        self._labels = np.array(files.labels, np.float32).reshape(-1, 1)
        self._plan = plan
        self._scale = scale
        self._skip = skip
        self._read_crop = DECODERS[decoder]
        # Rows of the folder: a view of some samples draws the same numbers for them, and
        # replaces one by another of its own, never by one that was held out.
        self._rows = np.arange(len(files.paths))
        self._epoch: Optional[int] = None
        # All views and threads share it. Adding a key and copying are each one step for Python.
        self._skipped: Dict[str, str] = {}
        self.classes = files.classes

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def shapes(self) -> Dict[str, Shape]:
        return {"x": (3, self._plan.size, self._plan.size), "y": (1,)}

    def transforms(self, rows: np.ndarray) -> Tuple[List[str], List[Transform]]:
        """The files of some samples, and what becomes of them; reads nothing."""
        places = self._rows[rows]
        return [self._files[i] for i in places], self._plan.transforms(self._epoch, places)

    @property
    def skipped(self) -> Dict[str, str]:
        return dict(self._skipped)

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
        size = self._plan.size
        x = np.empty((len(rows), 3, size, size), np.float32)
        y = np.empty((len(rows), 1), np.float32)
        count = 0
        for row, transform in zip(rows.tolist(), self.transforms(rows)[1]):
            found, pixels = self._readable(row, transform)
            if pixels is None:
                continue
            np.multiply(pixels, self._scale, out=x[count])
            y[count] = self._labels[self._rows[found]]
            count += 1
        return {"x": x[:count], "y": y[:count]}

    def _readable(self, row: int, transform: Transform) -> Tuple[int, Optional[np.ndarray]]:
        """The first row from ``row`` on that can be read, round the end; its pixels, (3, H, W).

        None in evaluation, if it is not ``row`` itself.
        """
        for step in range(len(self)):
            at = (row + step) % len(self)
            if step:
                transform = self.transforms(np.array([at]))[1][0]
            path = self._files[self._rows[at]]
            try:
                return at, self._read_crop(path, self._plan.size, *transform)
            except DataError as error:
                if not self._skip:
                    raise
                self._skipped.setdefault(path, str(error))
            if self._epoch is None:
                return at, None
        raise DataError(f"none of the {len(self)} photos can be read; {path} is one of them")
