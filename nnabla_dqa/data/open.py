"""Opens data by what it finds at a path."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path
from typing import Callable, List, Optional, Sequence, Tuple

from nnabla_dqa._util.files import PathLike
from nnabla_dqa.data.arrays import open_npz
from nnabla_dqa.data.base import Data, DataError, check_scale
from nnabla_dqa.data.cifar import find_cifar, open_cifar_archive
from nnabla_dqa.data.idx import images_of_folder, looks_like_idx, open_idx
from nnabla_dqa.data.nnabla_csv import open_csv
from nnabla_dqa.data.photos.folders import holds_class_folders, open_folders

SUBSETS = ("train", "validation")

FORMS = (
    "a folder with MNIST's idx files, a folder with CIFAR's files or archive, a folder with one"
    " folder of images for each class, an idx file of images, CIFAR's .tar.gz, an .npz, or an"
    " NNabla .csv"
)

_Opener = Callable[[], Data]


def open_data(
    source: PathLike,
    subset: str,
    scale: Optional[float] = None,
    image_shape: Optional[Sequence[int]] = None,
    classes: Optional[Sequence[str]] = None,
) -> Data:
    """Open a data set by what ``source`` holds.

    ======================================  ===================  =======================
    source                                  columns              shapes
    ======================================  ===================  =======================
    folder with MNIST's idx files, or the   x, y                 (1, rows, columns), (1,)
    images file of one subset
    CIFAR-10's or CIFAR-100's ``.tar.gz``   x, y                 (3, 32, 32), (1,)
    of the binary or python version, the
    folder in it, or a folder with either
    folder with ``train/<class>/`` and      x, y                 (C, H, W), (1,)
    ``val/<class>/``, or ``<class>/``
    ``.npz``                                its arrays           theirs; (1,) for ``(N,)``
    ``.csv`` of NNabla                      its variables        (1,) for a number
    ======================================  ===================  =======================

    CIFAR's archives are read as they are, without unpacking. In a folder with several forms
    of the same CIFAR, unpacked files come before archives and the binary version before the
    python version. An archive whose MD5 checksum is not the published one is read with a
    warning. Pickles of the python version cannot run code: one that asks for more than arrays
    of uint8 is refused. Of CIFAR-100's labels ``y`` has the fine ones; the
    coarse ones are not read.

    Args:
        source: The path. A single file is opened whatever the subset is, except for
            CIFAR's archives, which hold both.
        subset: ``"train"`` or ``"validation"``.
        scale: What uint8 pixels are multiplied by; default 1/255, as Neural
            Network Console does. 1 gives 0 to 255. Other numbers are never scaled.
        image_shape: For class folders, (C, H, W) that every image is brought to.
            Default: the size of the first training image.
        classes: For class folders, their names in the order of their numbers.
            Default: those of the training subset, sorted.

    Raises:
        DataError: There is nothing at ``source``, nothing that is understood,
            or data that is damaged; the message names the file and the line or row.
    """
    if not isinstance(source, (str, os.PathLike)):
        raise DataError(f"open_data: {type(source).__name__} is not a path")
    if subset not in SUBSETS:
        raise DataError(f"open_data: subset={subset!r} is neither 'train' nor 'validation'")
    check_scale(scale)
    if not os.path.exists(source):
        raise DataError(f"there is no file or folder {os.fspath(source)!r}")
    path = Path(source)
    try:
        if path.is_dir():
            return _open_folder(path, subset, scale, image_shape, classes)
        _refuse(path, image_shape, classes)
        return _open_file(path, subset, scale)
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error}") from None


def holds_images(source: PathLike, subset: str) -> bool:
    """Whether :func:`open_data` reads the images of class folders there, of any size."""
    folder = Path(source)
    return folder.is_dir() and not _arrays_in(folder, subset, None) and holds_class_folders(folder)


def _open_folder(
    folder: Path,
    subset: str,
    scale: Optional[float],
    image_shape: Optional[Sequence[int]],
    classes: Optional[Sequence[str]],
) -> Data:
    found = _arrays_in(folder, subset, scale)
    if not found and holds_class_folders(folder):
        return open_folders(folder, subset, scale, image_shape, classes)
    if not found:
        raise DataError(f"{folder}: holds nothing that is understood; needed is {FORMS}")
    if len(found) > 1:
        names = " and ".join(name for name, _ in found)
        raise DataError(f"{folder}: holds {names}; name the folder or file of one of them")
    _refuse(folder, image_shape, classes)
    return found[0][1]()


def _arrays_in(folder: Path, subset: str, scale: Optional[float]) -> List[Tuple[str, _Opener]]:
    """What a folder holds in MNIST's or CIFAR's form."""
    found: List[Tuple[str, _Opener]] = []
    images = images_of_folder(folder, subset)
    if images is not None:
        found.append((images.name, partial(open_idx, images, scale)))
    for name, opener in find_cifar(folder).items():
        found.append((name, partial(opener, subset, scale)))
    return found


def _open_file(path: Path, subset: str, scale: Optional[float]) -> Data:
    suffix = path.suffix.lower()
    if suffix == ".npz":
        return open_npz(path, scale)
    if suffix == ".csv":
        return open_csv(path, scale)
    if path.name.lower().endswith((".tar.gz", ".tgz")):
        return open_cifar_archive(path, subset, scale)
    if looks_like_idx(path):
        return open_idx(path, scale)
    raise DataError(f"{path}: is nothing that is understood; needed is {FORMS}")


def _refuse(path: Path, image_shape: object, classes: object) -> None:
    for name, value in (("image_shape", image_shape), ("classes", classes)):
        if value is not None:
            raise DataError(f"{path}: {name} is for folders of images, and this is not one")
