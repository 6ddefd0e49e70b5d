"""What a recipe trains on: its data, and for distillation its teacher."""

from __future__ import annotations

import os
import zlib
from pathlib import Path
from typing import Any, Dict, List, Optional, Tuple

import numpy as np

from nnabla_dqa.data import Data, MissingSubsetError, open_data
from nnabla_dqa.nnp.file import NetworkFile
from nnabla_dqa.nnp.live import Program
from nnabla_dqa.nnp_format.members import NNPError
from nnabla_dqa.recipes.recipe import Recipe

ARCHIVES = (".tar.gz", ".tgz")
"""Files that hold subsets, as folders do."""
_SAMPLED = 16


def open_sources(recipe: Recipe) -> Tuple[Data, Optional[Data], List[str]]:
    """Training data, validation data or None, and what the user should know.

    Without ``data.validation``, the validation part of a folder or archive is used if it has one.

    Raises:
        DataError: Something named in the recipe cannot be read.
    """
    options = recipe.data
    shape = options.image_shape
    data = open_data(options.train, "train", options.scale, shape)
    # What training saw decides for the validation: class numbers and size of images.
    classes = data.classes or None
    if classes:
        shape = data.shapes["x"]
    if options.limit is not None:
        data = data.take(min(options.limit, len(data)))
    if options.validation is not None:
        place = options.validation
        return data, open_data(place, "validation", options.scale, shape, classes), []
    if not os.path.isdir(options.train) and not options.train.lower().endswith(ARCHIVES):
        return data, None, []
    if classes and not os.path.isdir(os.path.join(options.train, "train")):
        return data, None, [f"no validation data: {options.train} holds classes, not subsets"]
    try:
        place = options.train
        return data, open_data(place, "validation", options.scale, shape, classes), []
    except MissingSubsetError as error:
        return data, None, [f"no validation data: {error}"]


def teacher_of(file: NetworkFile, recipe: Recipe) -> Program:
    """The float networks that distillation compares with.

    Raises:
        NNPError: The recipe names no teacher and the file is trained already.
    """
    if recipe.teacher is not None:
        return Program(NetworkFile.read(recipe.teacher), quantized=False)
    if file.is_trained:
        raise NNPError(
            f"{file.archive.path}: is trained already, so its weights are no teacher; name the "
            f"float file in the recipe: teacher: ..."
        )
    return Program(file, quantized=False)


def fingerprint(data: Data) -> Dict[str, Any]:
    """Count, shapes and a checksum of some samples: to tell other data from these."""
    rows = np.unique(np.linspace(0, len(data) - 1, _SAMPLED).astype(np.int64))
    batch = data.batch(rows)
    checksum = 0
    for name in sorted(batch):
        checksum = zlib.crc32(np.ascontiguousarray(batch[name]).tobytes(), checksum)
    shapes = {name: list(shape) for name, shape in data.shapes.items()}
    return {"samples": len(data), "shapes": shapes, "checksum": checksum}


def without_folders(recipe: Recipe) -> Dict[str, Any]:
    """The recipe as JSON, its paths cut to names.

    A file to be passed on need not tell folders, and a training that is
    resumed may have been moved.
    """
    values = recipe.to_json()
    for place in (values["data"], values):
        for key in ("train", "validation", "teacher"):
            if key in place:
                place[key] = Path(place[key]).name
    return values
