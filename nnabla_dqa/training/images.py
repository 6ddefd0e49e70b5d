"""Images for an experiment, and what is done to their pixels inside the network."""

from __future__ import annotations

from typing import Any, Dict, Tuple

import nnabla as nn
import nnabla.parametric_functions as PF
import numpy as np

from nnabla_dqa.data import Data, open_data
from nnabla_dqa.data.augmentation import CropFlip
from nnabla_dqa.data.photos import open_photos
from nnabla_dqa.graph_ops import Variable
from nnabla_dqa.training.experiment_parts import ImageRecipe


def open_images(recipe: ImageRecipe, size: int, seed: int) -> Tuple[Data, Data]:
    """Training and validation images as a recipe says.

    Args:
        recipe: Where they are and what is done to them.
        size: Of photos, in pixels, where the recipe names none.
        seed: Of augmentation and of what is held out.

    Raises:
        DataError: They cannot be opened.
    """
    if recipe.augmentation == "random_resized_crop":
        options: Dict[str, Any] = {"corrupt": recipe.corrupt, "reader": recipe.reader}
        size = recipe.size or size
        train: Data = open_photos(recipe.source, "train", size, seed, **options)
        classes = train.classes
    else:
        train = open_data(recipe.source, "train")
        if recipe.augmentation == "crop_flip":
            train = CropFlip(train, seed)
    if recipe.holdout:
        # The same part for every seed, so that their scores can be compared.
        train, validation = train.split(recipe.holdout, 0)
    elif recipe.augmentation == "random_resized_crop":
        validation = open_photos(recipe.source, "validation", size, classes=classes, **options)
    else:
        validation = open_data(recipe.source, "validation", classes=train.classes or None)
    if recipe.limit is not None:
        train = train.take(min(recipe.limit, len(train)))
    return train, validation


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
