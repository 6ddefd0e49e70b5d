"""Folders of images, one for each class."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Dict, List, NamedTuple, Optional, Sequence, Tuple

import numpy as np

from nnabla_dqa._util.checks import is_int
from nnabla_dqa.data.arrays import ArrayColumn
from nnabla_dqa.data.base import DataError, MissingSubsetError, Shape, check_scale
from nnabla_dqa.data.columns import ColumnData
from nnabla_dqa.data.photos.decode_pillow import image_size, read_image

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp")

SUBSETS = {"train": ("train",), "validation": ("val", "validation", "test")}
"""The folders that hold each subset; the first that exists is taken."""


class _ResizedImages:
    """Image files that are read when they are asked for, all brought to one shape."""

    def __init__(self, paths: Sequence[str], shape: Tuple[int, int, int], scale: float) -> None:
        self._paths = paths
        self._scale = np.float32(scale)
        self._image_shape = shape

    @property
    def shape(self) -> Shape:
        return self._image_shape

    def __len__(self) -> int:
        return len(self._paths)

    def read(self, rows: np.ndarray) -> np.ndarray:
        pixels = np.empty((len(rows), *self._image_shape), np.float32)
        for i, row in enumerate(rows):
            pixels[i] = read_image(Path(self._paths[row]), self._image_shape)
        pixels *= self._scale
        return pixels


def holds_class_folders(folder: Path) -> bool:
    """Whether a folder has a subset's folder, or a folder with images."""
    subsets = [name for names in SUBSETS.values() for name in names]
    return any((folder / name).is_dir() for name in subsets) or any(
        _images(folder / name) for name in _folders(folder)
    )


def open_folders(
    folder: Path,
    subset: str,
    scale: Optional[float] = None,
    image_shape: Optional[Sequence[int]] = None,
    classes: Optional[Sequence[str]] = None,
) -> ColumnData:
    """``x``, images, and ``y`` of shape (1,), the class's number.

    ``<folder>/train/<class>/*.png`` and ``<folder>/val/<class>/*.png``, or
    ``<folder>/<class>/*.png`` whatever the subset. Files are png, jpg, jpeg and
    bmp, in sorted order; others and hidden ones are passed over.

    Args:
        folder: See above.
        subset: ``"train"`` or ``"validation"``.
        scale: What pixels are multiplied by; default 1/255.
        image_shape: (C, H, W), C 1 or 3. Default: that of the first training
            image, for both subsets; where there is no training subset, of the
            first image. Images of another size are resized.
        classes: Folder names in the order of their numbers. Default: the
            training subset's in sorted order, for both subsets.

    Raises:
        DataError: The subset is missing, a class is empty or unknown, or the
            first image cannot be read.
    """
    factor = check_scale(scale)
    files = class_files(folder, subset, classes)
    if image_shape is not None:
        shape = _check_shape(image_shape)
    else:
        shape = image_size(_first_image(files.training) or Path(files.paths[0]))
    source = str(files.place)
    columns: Dict[str, ArrayColumn] = {
        "y": ArrayColumn(np.array(files.labels, np.int64), factor, source, "y")
    }
    images = _ResizedImages(files.paths, shape, factor)
    return ColumnData({"x": images, **columns}, source, files.classes)


class ClassFiles(NamedTuple):
    """The images of a subset.

    Attributes:
        place: The subset's folder.
        training: The training subset's, if there is one; else ``place``.
        paths: Of the images, in the order of the samples.
        labels: The number of each image's class.
        classes: Their names in the order of their numbers.
    """

    place: Path
    training: Path
    paths: List[str]
    labels: List[int]
    classes: Tuple[str, ...]


def class_files(folder: Path, subset: str, classes: Optional[Sequence[str]] = None) -> ClassFiles:
    """Find the images of a subset; the arguments and errors are those of :func:`open_folders`."""
    place = _subset_folder(folder, subset)
    # What is learned from the training subset holds for both: a class without validation
    # images must not shift the numbers of those after it.
    training = folder / "train" if (folder / "train").is_dir() else place
    names = tuple(classes) if classes is not None else tuple(_folders(training))
    numbers = {name: number for number, name in enumerate(names)}
    paths: List[str] = []
    labels: List[int] = []
    for name in _folders(place):
        if name not in numbers:
            raise DataError(f"{place / name}: is not a class; the classes are {_few(names)}")
        files = _images(place / name)
        if not files:
            raise DataError(f"{place / name}: holds no image; {', '.join(SUFFIXES)} are read")
        paths.extend(files)
        labels.extend([numbers[name]] * len(files))
    if not paths:
        raise DataError(f"{place}: holds no folders of images, one for each class")
    return ClassFiles(place, training, paths, labels, names)


def _subset_folder(folder: Path, subset: str) -> Path:
    for name in SUBSETS[subset]:
        if (folder / name).is_dir():
            return folder / name
    others = [name for names in SUBSETS.values() for name in names if (folder / name).is_dir()]
    if not others:
        return folder
    wanted = " or ".join(SUBSETS[subset])
    raise MissingSubsetError(
        f"{folder}: has {others[0]}, but no {wanted} folder for the {subset} subset"
    )


def _first_image(folder: Path) -> Optional[Path]:
    images = (_images(folder / name) for name in _folders(folder))
    return next((Path(files[0]) for files in images if files), None)


def _folders(folder: Path) -> List[str]:
    with os.scandir(folder) as entries:
        return sorted(e.name for e in entries if not e.name.startswith(".") and e.is_dir())


def _images(folder: Path) -> List[str]:
    with os.scandir(folder) as entries:
        return sorted(
            entry.path
            for entry in entries
            if not entry.name.startswith(".")
            and entry.name.lower().endswith(SUFFIXES)
            and entry.is_file()
        )


def _check_shape(image_shape: Sequence[int]) -> Tuple[int, int, int]:
    sizes = tuple(image_shape) if isinstance(image_shape, (tuple, list)) else ()
    if len(sizes) != 3 or not all(is_int(n) and n > 0 for n in sizes) or sizes[0] not in (1, 3):
        raise DataError(
            f"image_shape={image_shape!r} is not (channels, height, width) with 1 or 3 channels"
        )
    return int(sizes[0]), int(sizes[1]), int(sizes[2])


def _few(names: Sequence[str]) -> str:
    return ", ".join(names[:10]) + (", ..." if len(names) > 10 else "")
