"""Image files as uint8 arrays of shape (channels, height, width)."""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import Callable, Optional, Tuple

import numpy as np
from PIL import Image, UnidentifiedImageError

from nnabla_dqa._util.files import PathLike
from nnabla_dqa._util.messages import one_line
from nnabla_dqa.data.base import DataError
from nnabla_dqa.data.photos.crops import Box

_MODES = {1: "L", 3: "RGB"}

JPEG_START = b"\xff\xd8\xff"

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


def read_crop(
    path: PathLike, size: int, choose: Callable[[int, int], Box], mirror: bool = False
) -> np.ndarray:
    """A part of a photo, brought to ``size`` by ``size`` pixels.

    Bilinear, and where the box is larger than ``size``, averaged over the pixels
    that an output pixel covers; at the edges of the box with its neighbours in
    the photo. A JPEG is decoded smaller by :func:`decoding_step`: Pillow's
    ``reducing_gap``, whose results differ little.

    Args:
        path: Whatever Pillow reads; of an animation the first picture. Grey,
            palettes, alpha and CMYK become RGB.
        size: In pixels.
        choose: Gets the photo's width and height, gives the box.
        mirror: Left to right.

    Returns:
        uint8, (3, size, size), RGB.

    Raises:
        DataError: As for :func:`read_image`.
    """

    def convert(image: Image.Image) -> np.ndarray:
        width, height = image.size
        box = choose(width, height)
        step = decoding_step(box, size)
        # Only a JPEG's decoder can do this; the others leave the image as it is.
        drafted = image.draft(None, (width // step, height // step)) if step > 1 else None
        if drafted is not None:
            box = box[0] / step, box[1] / step, box[2] / step, box[3] / step
        picture = _eight_bit(image)
        if picture.mode != "RGB":
            picture = picture.convert("RGB")
        picture = picture.resize((size, size), Image.Resampling.BILINEAR, box)
        if mirror:
            picture = picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        # Pillow takes bands apart faster than NumPy takes interleaved pixels apart.
        planes = b"".join(picture.tobytes("raw", band) for band in "RGB")
        return np.frombuffer(planes, np.uint8).reshape(3, size, size)

    return _use(path, convert)


def decoding_step(box: Box, size: int) -> int:
    """How many pixels a side a JPEG's decoder is to average into one: 1, 2, 4 or 8.

    The largest that leaves ``DRAFT_GAP`` pixels of the box for each one of
    ``size``, both ways.
    """
    side = min(box[2] - box[0], box[3] - box[1])
    return next((n for n in (8, 4, 2) if side >= n * DRAFT_GAP * size), 1)


def read_content(path: PathLike) -> bytes:
    """A file, whole.

    Raises:
        DataError: It cannot be read.
    """
    try:
        with open(path, "rb") as file:
            return file.read()
    except FileNotFoundError:
        raise DataError(f"{os.fspath(path)}: there is no such file") from None
    except OSError as error:
        raise unreadable(path, error) from None


def unreadable(path: PathLike, error: Exception) -> DataError:
    """What to raise for a file that cannot be decoded."""
    if isinstance(error, UnidentifiedImageError):
        # Its own message has the address of an object in place of the path.
        error = UnidentifiedImageError("cannot identify image file")
    return DataError(
        f"{os.fspath(path)}: is not an image that can be read:"
        f" {type(error).__name__}: {one_line(error)}"
    )


def image_size(path: Path) -> Tuple[int, int, int]:
    """(C, H, W) of one image with C 1 or 3: what it is without alpha.

    Raises:
        DataError: As for :func:`read_image`.
    """
    channels, height, width = read_image(path).shape
    return 1 if channels < 3 else 3, height, width


def _use(path: PathLike, convert: Callable[[Image.Image], np.ndarray]) -> np.ndarray:
    """What ``convert`` makes of the opened image, which it may load itself."""
    content = read_content(path)
    # From a file Pillow reads piece by piece, a quarter of a small photo's decoding time;
    # and it need not ask its other decoders about a JPEG.
    formats = ("JPEG",) if content.startswith(JPEG_START) else None
    try:
        with Image.open(io.BytesIO(content), formats=formats) as image:
            return convert(image)
    # Pillow's decoders let through whatever their parsers meet: OSError, SyntaxError,
    # ValueError, struct.error, EOFError, MemoryError and others.
    except Exception as error:
        raise unreadable(path, error) from None


def _eight_bit(image: Image.Image) -> Image.Image:
    image.load()
    if image.mode.startswith("I"):
        return Image.fromarray((np.asarray(image).astype(np.int64) >> 8).astype(np.uint8))
    if image.mode == "P":
        return image.convert("RGBA" if "transparency" in image.info else "RGB")
    if image.mode in ("L", "LA", "RGB", "RGBA"):
        return image
    return image.convert("L" if image.mode == "1" else "RGB")
