"""Image files as uint8 arrays of shape (channels, height, width)."""

from __future__ import annotations

from pathlib import Path
from typing import Optional, Tuple

import numpy as np
from PIL import Image

from nnabla_dqa.data.base import DataError
from nnabla_dqa.messages import one_line

_MODES = {1: "L", 3: "RGB"}


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
    try:
        with Image.open(path) as image:
            image.load()
            picture = _eight_bit(image)
            if shape is not None:
                picture = picture.convert(_MODES[shape[0]])
                if picture.size != (shape[2], shape[1]):
                    picture = picture.resize((shape[2], shape[1]), Image.Resampling.BILINEAR)
            pixels = np.asarray(picture)
    except FileNotFoundError:
        raise DataError(f"{path}: there is no such file") from None
    # Pillow's decoders let through whatever their parsers meet: OSError, SyntaxError,
    # ValueError, struct.error, EOFError, MemoryError and others.
    except Exception as error:
        raise DataError(
            f"{path}: is not an image that can be read: {type(error).__name__}: {one_line(error)}"
        ) from None
    if pixels.ndim == 2:
        return pixels[np.newaxis]
    return np.ascontiguousarray(pixels.transpose(2, 0, 1))


def image_size(path: Path) -> Tuple[int, int, int]:
    """(C, H, W) of one image with C 1 or 3: what it is without alpha.

    Raises:
        DataError: As for :func:`read_image`.
    """
    channels, height, width = read_image(path).shape
    return 1 if channels < 3 else 3, height, width


def _eight_bit(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):
        return Image.fromarray((np.asarray(image).astype(np.int64) >> 8).astype(np.uint8))
    if image.mode == "P":
        return image.convert("RGBA" if "transparency" in image.info else "RGB")
    if image.mode in ("L", "LA", "RGB", "RGBA"):
        return image
    return image.convert("L" if image.mode == "1" else "RGB")
