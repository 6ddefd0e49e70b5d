"""The parts of an experiment's recipe: its model and its images."""

from __future__ import annotations

import dataclasses
import math
import numbers
from pathlib import Path
from typing import Any, Optional, Tuple

from nnabla_dqa.data import DataError
from nnabla_dqa.data.photos.decode_opencv import require_opencv
from nnabla_dqa.models import MODELS
from nnabla_dqa.recipes.checks import (
    RecipeError,
    check_mapping,
    check_number,
    check_one_of,
    check_whole,
)

READERS = ("pillow", "opencv", "auto")
AUGMENTATIONS = ("none", "crop_flip", "random_resized_crop")


def take_values(instance: Any, **values: Any) -> None:
    """Set fields of a frozen dataclass that is being made."""
    for name, value in values.items():
        object.__setattr__(instance, name, value)


def part_of(kind: Any, key: str, value: Any, required: str) -> Any:
    """``value`` as the dataclass ``kind``; a mapping of its fields, or just the required one."""
    if isinstance(value, kind):
        return value
    if isinstance(value, (str, Path)):
        value = {required: str(value)}
    keys = [field.name for field in dataclasses.fields(kind)]
    check_mapping(f"key {key!r}", value, keys, required=required)
    return kind(**value)


@dataclasses.dataclass(frozen=True)
class ModelRecipe:
    """A model of :data:`nnabla_dqa.models.MODELS`.

    Args:
        name: Such as ``resnet18_32``.
        classes: Outputs.
        width: Multiplies the channel counts; below 1 the model is a narrow one.
        stem_stride: 2 halves the resolution of a model for 32x32 images at once.
        channel_last: For GPUs.

    Raises:
        RecipeError: Names the key and what is allowed.
    """

    name: str
    classes: int = 10
    width: float = 1.0
    stem_stride: int = 1
    channel_last: bool = False

    def __post_init__(self) -> None:
        check_one_of("model.name", self.name, tuple(MODELS))
        take_values(
            self,
            classes=check_whole("model.classes", self.classes, 2),
            width=check_number("model.width", self.width, above=0),
            stem_stride=check_whole("model.stem_stride", self.stem_stride, 1),
        )
        if not isinstance(self.channel_last, bool):
            raise RecipeError(
                f"key 'model.channel_last' must be true or false; got {self.channel_last!r}"
            )

    @property
    def image_size(self) -> int:
        """Height and width of the images that the model was made for."""
        return int(self.name.rsplit("_", 1)[1])


@dataclasses.dataclass(frozen=True)
class ImageRecipe:
    """Images and what is done to them.

    Args:
        source: File or folder with a training and a validation part; see
            :func:`nnabla_dqa.data.open_data`. For ``random_resized_crop`` a
            folder of class folders.
        augmentation: ``crop_flip``: pad by 4, crop, mirror (CIFAR);
            ``random_resized_crop``: a random box, mirrored (ImageNet; validation
            takes the middle); ``none``.
        mean: By channel, of pixels from 0 to 1; taken off inside the network.
        std: By channel; what is left is divided by it, inside the network.
        size: Height and width of the crops of ``random_resized_crop``; None:
            what the model was made for.
        limit: Use only so many training samples: the first ones, or of class
            folders a part drawn by lot, the same for every seed.
        holdout: This share of the training samples is kept for validation and
            the data's own validation part is not looked at; for choosing a recipe.
        corrupt: Files that are no images: ``error`` or ``skip`` (named and counted), the
            latter with ``random_resized_crop`` only.
        reader: Of photos, likewise: ``pillow`` or ``opencv`` (faster), whose pixels differ a
            little; ``auto``: OpenCV where it is installed, else Pillow. A run keeps which
            one it was.
        workers: Threads that read ahead; changes no number.

    Raises:
        RecipeError: Names the key and what is allowed.
    """

    source: str
    augmentation: str = "crop_flip"
    mean: Tuple[float, ...] = (0.0, 0.0, 0.0)
    std: Tuple[float, ...] = (1.0, 1.0, 1.0)
    size: Optional[int] = None
    limit: Optional[int] = None
    holdout: float = 0.0
    corrupt: str = "error"
    reader: str = "pillow"
    workers: int = 2

    def __post_init__(self) -> None:
        if not isinstance(self.source, (str, Path)):
            raise RecipeError(f"key 'data.source' must be text; got {self.source!r}")
        take_values(self, source=str(self.source))
        check_one_of("data.augmentation", self.augmentation, AUGMENTATIONS)
        check_one_of("data.corrupt", self.corrupt, ("error", "skip"))
        if self.size is not None:
            take_values(self, size=check_whole("data.size", self.size, 1))
            if self.augmentation != "random_resized_crop":
                raise RecipeError(
                    f"key 'data.size' is for augmentation random_resized_crop; "
                    f"{self.augmentation} leaves images as large as they are"
                )
        check_one_of("data.reader", self.reader, READERS)
        if self.augmentation != "random_resized_crop":
            self._refuse_keys_of_photos()
        if self.limit is not None:
            take_values(self, limit=check_whole("data.limit", self.limit, 1))
        take_values(
            self,
            mean=_three("data.mean", self.mean, False),
            std=_three("data.std", self.std, True),
            holdout=check_number("data.holdout", self.holdout),
            workers=check_whole("data.workers", self.workers, 0),
        )
        if not self.holdout < 1:
            raise RecipeError(f"key 'data.holdout' must be from 0 to below 1; got {self.holdout!r}")

    def _refuse_keys_of_photos(self) -> None:
        for key, value, default in (
            ("corrupt", self.corrupt, "error"),
            ("reader", self.reader, "pillow"),
        ):
            if value != default:
                raise RecipeError(
                    f"key 'data.{key}' is for photos, augmentation random_resized_crop; with "
                    f"{self.augmentation} it is {default}; got {value!r}"
                )

    def resolved(self) -> ImageRecipe:
        """The recipe with the reader that ``auto`` comes to on this machine."""
        if self.reader != "auto":
            return self
        try:
            require_opencv()
        except DataError:
            return dataclasses.replace(self, reader="pillow")
        return dataclasses.replace(self, reader="opencv")


def _three(key: str, value: Any, positive: bool) -> Tuple[float, ...]:
    ok = isinstance(value, (list, tuple)) and len(value) == 3
    ok = ok and all(isinstance(v, numbers.Real) and math.isfinite(v) for v in value)
    if not ok or (positive and min(value) <= 0):
        above = " above 0" if positive else ""
        raise RecipeError(f"key {key!r} must be three numbers{above}; got {value!r}")
    return tuple(float(v) for v in value)
