"""What a recipe trains on: its samples for training and validation."""

from __future__ import annotations

import zlib
from pathlib import Path
from typing import Any, Dict, List, NamedTuple, Optional, Sequence

import numpy as np

from nnabla_dqa.data import Data, DataError, MissingSubsetError, open_data
from nnabla_dqa.data.augment import CropFlip
from nnabla_dqa.data.photos import open_photos
from nnabla_dqa.data.photos.folders import SUBSETS, holds_class_folders
from nnabla_dqa.recipes.parts import PHOTOS, DataRecipe

ARCHIVES = (".tar.gz", ".tgz")
"""Files that hold subsets, as folders do."""
_SAMPLED = 16
_NO_VALIDATION = "name data.validation or data.holdout; epochs have no score"


class Sources(NamedTuple):
    """Training samples, validation samples if there are any, and what the user should know."""

    train: Data
    validation: Optional[Data]
    messages: List[str]


def open_sources(recipe: DataRecipe, size: int = 0, seed: int = 0) -> Sources:
    """Open the data of a recipe.

    Args:
        recipe: Where they are and what is done to them.
        size: Of photos, in pixels, where the recipe names none.
        seed: Of augmentation.

    Raises:
        DataError: Something named in the recipe cannot be read.
    """
    photos = recipe.augment == PHOTOS

    def opened(
        place: str, subset: str, shape: Any, classes: Optional[Sequence[str]] = None
    ) -> Data:
        if not photos:
            return open_data(place, subset, recipe.scale, shape, classes)
        return open_photos(
            place,
            subset,
            recipe.size or size,
            seed,
            corrupt=recipe.corrupt,
            classes=classes,
            scale=recipe.scale,
            decoder=recipe.reader,
        )

    train = opened(recipe.train, "train", recipe.image_shape)
    # What training saw decides for the validation: class numbers and size of images.
    classes = train.classes or None
    shape = train.shapes["x"] if classes else recipe.image_shape
    if recipe.augment in ("crop", "crop_flip"):
        train = CropFlip(
            train, seed, recipe.pad, _image_column(train), flip=recipe.augment == "crop_flip"
        )
    validation: Optional[Data] = None
    why = ""
    if recipe.holdout:
        # The same subset for every seed, so that their scores can be compared.
        train, validation = train.split(recipe.holdout, 0)
    elif recipe.validation is not None:
        validation = opened(recipe.validation, "validation", shape, classes)
    elif holds_subsets(recipe.train):
        try:
            validation = opened(recipe.train, "validation", shape, classes)
        except MissingSubsetError as error:
            why = f" ({error})"
    elif Path(recipe.train).is_dir():
        why = f" ({recipe.train} holds classes, not subsets)"
    messages = [] if validation is not None else [f"no validation data{why}: {_NO_VALIDATION}"]
    if recipe.limit is not None:
        train = limited(train, recipe.limit)
    return Sources(train, validation, messages)


def holds_subsets(source: str) -> bool:
    """Whether data have parts for training and validation of their own."""
    path = Path(source)
    if not path.is_dir():
        return path.name.lower().endswith(ARCHIVES)
    subsets = [name for names in SUBSETS.values() for name in names]
    return any((path / name).is_dir() for name in subsets) or not holds_class_folders(path)


def _image_column(data: Data) -> str:
    images = [name for name, shape in data.shapes.items() if len(shape) == 3]
    return "x" if "x" in data.shapes or not images else images[0]


def limited(data: Data, count: int) -> Data:
    """The first so many samples; of class folders, which are sorted, a random subset."""
    if count >= len(data):
        return data
    return data.split(count / len(data), 0)[1] if data.classes else data.take(count)


def check_classes(data: Data, classes: int, source: Any, hint: str = "") -> Optional[str]:
    """What to tell if the data have fewer classes than a network, None if as many.

    Raises:
        DataError: They have more; the message ends with ``hint``.
    """
    found = data.classes
    if len(found) > classes:
        raise DataError(f"{source}: has {len(found)} classes, the network has {classes}{hint}")
    if not found or len(found) == classes:
        return None
    return (
        f"{source}: has {len(found)} classes, the network has {classes}; they are numbered in "
        f"order, from 0 ({found[0]}) to {len(found) - 1} ({found[-1]}), so the network has to have "
        f"them in the same order"
    )


def dataset_checksum(data: Data) -> Dict[str, Any]:
    """Count, shapes and a checksum of some samples: by which a checkpoint recognises its data."""
    rows = np.unique(np.linspace(0, len(data) - 1, _SAMPLED).astype(np.int64))
    batch = data.batch(rows)
    checksum = 0
    for name in sorted(batch):
        checksum = zlib.crc32(np.ascontiguousarray(batch[name]).tobytes(), checksum)
    shapes = {name: list(shape) for name, shape in data.shapes.items()}
    return {"samples": len(data), "shapes": shapes, "checksum": checksum}
