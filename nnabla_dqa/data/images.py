"""Image files as uint8 arrays of shape (channels, height, width)."""

from __future__ import annotations

from pathlib import Path
from typing import Callable, Optional, Tuple

import numpy as np
from PIL import Image

from nnabla_dqa.data.base import DataError
from nnabla_dqa.data.crops import Box
from nnabla_dqa.messages import one_line

_MODES = {1: "L", 3: "RGB"}

DRAFT_GAP = 2
"""Of what a JPEG's decoder makes smaller itself, at least so many pixels are left for each one."""


def read_image(path: Path, shape: Optional[Tuple[int, int, int]] = None) -> np.ndarray:
    """One image.

    Args:
        path: Whatever Pillow reads; of an animation the first picture.
        shape: (C, H, W) to convert to, C 1 (grey) or 3 (RGB), bilinear where
            the size differs. None leaves the image as NNabla reads it: grey (1),
            grey with alpha (2), RGB (3) or RGBA (4), palettes resolved.

    Returns:
        uint8, (C, H, W). 16-bit images are reduced to their upper 8 bits.

    Raises:
        DataError: The file is missing or is not an image that can be decoded.
    """

    def convert(image: Image.Image) -> np.ndarray:
        picture = _eight_bit(image)
        if shape is not None:
            picture = picture.convert(_MODES[shape[0]])
            if picture.size != (shape[2], shape[1]):
                picture = picture.resize((shape[2], shape[1]), Image.Resampling.BILINEAR)
        return np.asarray(picture)

    pixels = _use(path, convert)
    if pixels.ndim == 2:
        return pixels[np.newaxis]
    return np.ascontiguousarray(pixels.transpose(2, 0, 1))


def read_crop(path: Path, size: int, choose: Callable[[int, int], Box]) -> np.ndarray:
    """A part of a photo, brought to ``size`` by ``size`` pixels.

    Bilinear, and where the box is larger than ``size``, averaged over the pixels
    that an output pixel covers; at the edges of the box with its neighbours in
    the photo. Of a JPEG whose box is at least ``2 * DRAFT_GAP`` times as large as
    ``size`` both ways, the decoder averages blocks of 2, 4 or 8 pixels a side on
    its own, the largest that leave ``DRAFT_GAP`` times ``size``: Pillow's
    ``reducing_gap``, whose results differ little.

    Args:
        path: Whatever Pillow reads; of an animation the first picture. Grey,
            palettes, alpha and CMYK become RGB.
        size: In pixels.
        choose: Gets the photo's width and height, gives the box.

    Returns:
        uint8, (size, size, 3).

    Raises:
        DataError: As for :func:`read_image`.
    """

    def convert(image: Image.Image) -> np.ndarray:
        width, height = image.size
        box = choose(width, height)
        side = min(box[2] - box[0], box[3] - box[1])
        step = next((n for n in (8, 4, 2) if side >= n * DRAFT_GAP * size), 1)
        # Only a JPEG's decoder can do this; the others leave the image as it is.
        drafted = image.draft(None, (width // step, height // step)) if step > 1 else None
        if drafted is not None:
            box = box[0] / step, box[1] / step, box[2] / step, box[3] / step
        picture = _eight_bit(image)
        if picture.mode != "RGB":
            picture = picture.convert("RGB")
        return np.asarray(picture.resize((size, size), Image.Resampling.BILINEAR, box))

    return _use(path, convert)


def image_size(path: Path) -> Tuple[int, int, int]:
    """(C, H, W) of one image with C 1 or 3: what it is without alpha.

    Raises:
        DataError: As for :func:`read_image`.
    """
    channels, height, width = read_image(path).shape
    return 1 if channels < 3 else 3, height, width


def _use(path: Path, convert: Callable[[Image.Image], np.ndarray]) -> np.ndarray:
    """What ``convert`` makes of the opened image, which it may load itself."""
    try:
        with Image.open(path) as image:
            return convert(image)
    except FileNotFoundError:
        raise DataError(f"{path}: there is no such file") from None
    # Pillow's decoders let through whatever their parsers meet: OSError, SyntaxError,
    # ValueError, struct.error, EOFError, MemoryError and others.
    except Exception as error:
        raise DataError(
            f"{path}: is not an image that can be read: {type(error).__name__}: {one_line(error)}"
        ) from None


def _eight_bit(image: Image.Image) -> Image.Image:
    image.load()
    if image.mode.startswith("I"):
        return Image.fromarray((np.asarray(image).astype(np.int64) >> 8).astype(np.uint8))
    if image.mode == "P":
        return image.convert("RGBA" if "transparency" in image.info else "RGB")
    if image.mode in ("L", "LA", "RGB", "RGBA"):
        return image
    return image.convert("L" if image.mode == "1" else "RGB")
