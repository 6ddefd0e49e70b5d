"""Which part of a photo is seen, as a box in its own pixels, and whether it is mirrored."""

from __future__ import annotations

import dataclasses
import math
from typing import Callable, List, Optional, Tuple

import numpy as np

from nnabla_dqa.data.draws import draws

Box = Tuple[float, float, float, float]
"""Left, top, right and bottom in pixels of the photo, within it."""

Transform = Tuple[Callable[[int, int], Box], bool]
"""What gives the box from a photo's width and height, and whether the box is mirrored."""

AREA = (0.08, 1.0)
"""The fraction of the photo that a random box covers."""

RATIO = (3 / 4, 4 / 3)
"""Width to height of a random box."""

ATTEMPTS = 10

BOX_NUMBERS = 2 * ATTEMPTS + 2
"""How many random numbers a random box needs."""


def random_box(width: int, height: int, numbers: np.ndarray) -> Box:
    """A box of random area, shape and place (Szegedy et al., Going deeper with convolutions, 2015).

    Up to ten times an area, uniform in ``AREA``, and a ratio, uniform in its
    logarithm in ``RATIO``, are tried; the first box that fits is put anywhere
    with the same chance. If none fits, it is the largest one in the middle
    whose ratio is in ``RATIO``. Sides are whole pixels. torchvision's
    RandomResizedCrop has the same distribution.

    Args:
        width: Of the photo.
        height: Of the photo.
        numbers: ``BOX_NUMBERS`` of them, uniform in [0, 1): two an attempt, and
            the place's left and top.
    """
    low, high = math.log(RATIO[0]), math.log(RATIO[1])
    tries = numbers.tolist()
    for i in range(0, 2 * ATTEMPTS, 2):
        area = width * height * (AREA[0] + tries[i] * (AREA[1] - AREA[0]))
        ratio = math.exp(low + tries[i + 1] * (high - low))
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            left = math.floor(tries[-2] * (width - w + 1))
            top = math.floor(tries[-1] * (height - h + 1))
            return left, top, left + w, top + h
    w = min(width, max(1, round(height * RATIO[1])))
    h = min(height, max(1, round(width / RATIO[0])))
    left, top = (width - w) // 2, (height - h) // 2
    return left, top, left + w, top + h


def centre_box(width: int, height: int, size: int, resize: int) -> Box:
    """The middle ``size`` by ``size`` pixels of the photo brought to a short side of ``resize``.

    The resized photo's long side is rounded down to whole pixels, and the place
    of the middle to the nearest, as torchvision's Resize and CenterCrop do.
    Scaling the box gives what resizing the photo and cutting it out gives.
    """
    short = min(width, height)
    resized = resize * width // short, resize * height // short
    left, top = (round((side - size) / 2) for side in resized)
    x, y = width / resized[0], height / resized[1]
    right, bottom = min((left + size) * x, width), min((top + size) * y, height)
    return left * x, top * y, right, bottom


@dataclasses.dataclass(frozen=True)
class CropPlan:
    """How photos are cropped and mirrored.

    Attributes:
        size: Of a sample, in pixels.
        resize: The short side before the middle is taken.
        seed: Of the random numbers.
        augment: Whether boxes are random in training.
    """

    size: int
    resize: int
    seed: int
    augment: bool

    def transforms(self, epoch: Optional[int], rows: np.ndarray) -> List[Transform]:
        """The transform of each row in an epoch, or in evaluation, which is None."""
        if epoch is None or not self.augment:
            return [(self._middle, False)] * len(rows)
        numbers = draws(self.seed, epoch, rows, BOX_NUMBERS + 1)
        return [(_random(line[:-1]), bool(line[-1] < 0.5)) for line in numbers]

    def _middle(self, width: int, height: int) -> Box:
        return centre_box(width, height, self.size, self.resize)


def _random(numbers: np.ndarray) -> Callable[[int, int], Box]:
    return lambda width, height: random_box(width, height, numbers)
