"""Images for an experiment, and what is done to their pixels inside the network."""

from __future__ import annotations

from pathlib import Path
from typing import Optional, Tuple

import nnabla as nn
import nnabla.parametric_functions as PF
import numpy as np

from nnabla_dqa.data import Data, DataError, open_data
from nnabla_dqa.data.augment import CropFlip
from nnabla_dqa.data.photos import open_photos
from nnabla_dqa.data.photos.folders import SUBSETS, holds_class_folders
from nnabla_dqa.quantization.graph_ops import Variable
from nnabla_dqa.recipes.parts import ImageRecipe
from nnabla_dqa.training.tasks.sources import ARCHIVES


def open_images(recipe: ImageRecipe, size: int, seed: int) -> Tuple[Data, Data]:
    """Training and validation images as a recipe says.

    Args:
        recipe: Where they are and what is done to them.
        size: Of photos, in pixels, where the recipe names none.
        seed: Of augmentation and of what is held out.

    Raises:
        DataError: They cannot be opened.
    """
    photos = recipe.augmentation == "random_resized_crop"
    if photos:
        size = recipe.size or size
        train = _open_photos(recipe, "train", size, seed)
    else:
        train = open_data(recipe.source, "train")
        if recipe.augmentation == "crop_flip":
            train = CropFlip(train, seed)
    classes = train.classes or None
    if not recipe.holdout and not holds_subsets(recipe.source):
        raise DataError(
            f"{recipe.source}: has no part for validation; key 'data.holdout', such as 0.1, keeps "
            f"some of its images for that"
        )
    if recipe.holdout:
        # The same part for every seed, so that their scores can be compared.
        train, validation = train.split(recipe.holdout, 0)
    elif photos:
        validation = _open_photos(recipe, "validation", size, seed, classes)
    else:
        validation = open_data(recipe.source, "validation", classes=classes)
    if recipe.limit is not None:
        train = _limited(train, recipe.limit)
    return train, validation


def holds_subsets(source: str) -> bool:
    """Whether data have parts for training and validation of their own."""
    path = Path(source)
    if not path.is_dir():
        return path.name.lower().endswith(ARCHIVES)
    subsets = [name for names in SUBSETS.values() for name in names]
    return any((path / name).is_dir() for name in subsets) or not holds_class_folders(path)


def _limited(data: Data, count: int) -> Data:
    """The first so many samples; of class folders, which are sorted, a part drawn by lot."""
    if count >= len(data):
        return data
    if not data.classes:
        return data.take(count)
    return data.split(count / len(data), 0)[1]


def _open_photos(
    recipe: ImageRecipe,
    subset: str,
    size: int,
    seed: int,
    classes: Optional[Tuple[str, ...]] = None,
) -> Data:
    recipe = recipe.resolved()
    return open_photos(
        recipe.source,
        subset,
        size,
        seed,
        corrupt=recipe.corrupt,
        classes=classes,
        decoder=recipe.reader,
    )


def normalized(x: Variable, mean: Tuple[float, ...], std: Tuple[float, ...], axis: int) -> Variable:
    """``(x - mean) / std`` by channel, inside the network: a deployed file takes plain pixels.

    Args:
        x: Images, pixels from 0 to 1.
        mean: By channel.
        std: By channel.
        axis: Of the channels.
    """
    shape = tuple(3 if i == axis else 1 for i in range(4))
    epsilon = 1e-5
    variance = np.square(np.array(std, np.float64)) - epsilon
    values = {
        "mean": np.array(mean, np.float32).reshape(shape),
        "var": variance.astype(np.float32).reshape(shape),
    }
    y = PF.batch_normalization(
        x,
        [axis],
        eps=epsilon,
        batch_stat=False,
        fix_parameters=True,
        param_init=values,
        name="pixels",
    )
    # Fixed in this graph, they would still be given to a solver, whose weight decay shrinks them.
    with nn.parameter_scope("pixels"):
        for parameter in nn.get_parameters().values():
            parameter.need_grad = False
    return y
