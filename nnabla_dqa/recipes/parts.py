# ruff: noqa: RUF009
"""The parts of a recipe that have keys of their own: the data, and a model of this package."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Dict, Optional, Tuple

from nnabla_dqa.data import DataError
from nnabla_dqa.data.photos.decode_opencv import require_opencv
from nnabla_dqa.models import MODELS
from nnabla_dqa.recipes.checks import (
    RecipeError,
    check_fields,
    flag,
    is_whole,
    must_be,
    number,
    one_of,
    option,
    text,
    three,
    whole,
)

PHOTOS = "random_resized_crop"
AUGMENTATIONS = ("none", "crop", "crop_flip", PHOTOS)
READERS = ("pillow", "opencv", "auto")
_OF_PHOTOS = {"size": None, "corrupt": "error", "reader": "pillow"}


_IMAGE_SHAPE = must_be(
    "[C, H, W]",
    lambda v: (
        isinstance(v, (list, tuple)) and len(v) == 3 and all(is_whole(n) and n > 0 for n in v)
    ),
    lambda v: tuple(int(n) for n in v),
)
_COLUMNS = must_be(
    "{input: column}",
    lambda v: isinstance(v, Mapping) and all(isinstance(name, str) for name in v.values()),
    dict,
)


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

    name: str = option(one_of(*MODELS))
    classes: int = option(whole(2), 10)
    width: float = option(number(above=0), 1.0)
    stem_stride: int = option(whole(1), 1)
    channel_last: bool = option(flag, False)

    def __post_init__(self) -> None:
        check_fields(self, "model.")

    @property
    def image_size(self) -> int:
        """Height and width of the images that the model was made for."""
        return int(self.name.rsplit("_", 1)[1])


@dataclasses.dataclass(frozen=True)
class DataRecipe:
    """Where the samples come from and what is done to them.

    Args:
        train: File or folder; see :func:`nnabla_dqa.data.open_data`.
        validation: The same for validation; default: the validation part of
            ``train`` if it is a folder or an archive that has one, else nothing.
        holdout: This fraction of the training samples, a random subset that is
            the same for every seed, validates instead; for choosing a recipe.
        augment: Of images in training. ``crop``: pad by ``pad``, cut out at a
            random place; ``crop_flip``: mirror half of them, too (CIFAR);
            ``random_resized_crop``: of photos in class folders a random box,
            mirrored (ImageNet; validation takes the middle); ``none``.
        pad: Pixels of zeros around an image, for ``crop`` and ``crop_flip``.
        limit: Use only so many training samples: the first ones, or of class
            folders a random subset, the same for every seed.
        scale: What uint8 pixels are multiplied by; default 1/255, as Neural
            Network Console does. 1 for networks that take 0 to 255.
        image_shape: (C, H, W) to which images of class folders are brought.
        inputs: Which column feeds which input of the network, where the file
            and the order (inputs: x, label: y) do not tell.
        target: The column that a named loss and the score compare with;
            default: ``y``, or the only one that feeds no input.
        mean: By channel, of pixels from 0 to 1; taken off inside a model.
        std: By channel; what is left is divided by it, inside a model.
        size: Height and width of the crops of ``random_resized_crop``;
            default: what the network was made for.
        corrupt: Photos that cannot be read: ``error`` or ``skip`` (named and counted).
        reader: Of photos: ``pillow``, or ``opencv`` (faster, pixels differ a
            little); ``auto``: OpenCV where it is installed, else Pillow. A run keeps
            which one it was.
        workers: Threads that read ahead; changes no number.

    Raises:
        RecipeError: Names the key and what is allowed.

    Examples:
        >>> import nnabla_dqa as dqa
        >>> data = dqa.DataRecipe("cifar-10-batches-bin", augment="crop_flip", holdout=0.1)
        >>> recipe = dqa.Recipe(data, model="resnet20_32", quantizers="minmax:2,4,8")
    """

    train: str = option(text)
    validation: Optional[str] = option(text, None)
    holdout: float = option(number(below=1), 0.0)
    augment: str = option(one_of(*AUGMENTATIONS), "none")
    pad: int = option(whole(0), 4)
    limit: Optional[int] = option(whole(1), None)
    scale: Optional[float] = option(number(above=0), None)
    image_shape: Optional[Tuple[int, ...]] = option(_IMAGE_SHAPE, None)
    inputs: Optional[Dict[str, str]] = option(_COLUMNS, None)
    target: Optional[str] = option(text, None)
    mean: Tuple[float, ...] = option(three(), (0.0, 0.0, 0.0))
    std: Tuple[float, ...] = option(three(above=0), (1.0, 1.0, 1.0))
    size: Optional[int] = option(whole(1), None)
    corrupt: str = option(one_of("error", "skip"), "error")
    reader: str = option(one_of(*READERS), "pillow")
    workers: int = option(whole(0), 2)

    def __post_init__(self) -> None:
        check_fields(self, "data.")
        if self.holdout and self.validation is not None:
            raise RecipeError("keys 'data.holdout' and 'data.validation': one of them is enough")
        for key, default in _OF_PHOTOS.items():
            if self.augment != PHOTOS and getattr(self, key) != default:
                raise RecipeError(
                    f"key 'data.{key}' is for photos, augment: {PHOTOS}; with {self.augment} "
                    f"leave it out"
                )

    def resolved(self) -> DataRecipe:
        """The recipe with the reader that ``auto`` comes to on this machine."""
        if self.reader != "auto":
            return self
        try:
            require_opencv()
        except DataError:
            return dataclasses.replace(self, reader="pillow")
        return dataclasses.replace(self, reader="opencv")
