"""Photos decoded, cropped and resized by OpenCV, where it is installed."""

from __future__ import annotations

import importlib
import io
from typing import Any, Callable, Optional, Tuple

import numpy as np
from PIL import Image

from nnabla_dqa._util.files import PathLike
from nnabla_dqa.data.base import DataError
from nnabla_dqa.data.photos.crops import Box
from nnabla_dqa.data.photos.decode_pillow import JPEG_START, decoding_step, read_content, unreadable

PACKAGE = "opencv-python-headless>=4.11,<4.12"


def require_opencv() -> None:
    """Look for OpenCV and turn off its own threads in this process: the workers are the threads.

    Raises:
        DataError: It is not installed, or older than what is needed.
    """
    try:
        cv2: Any = importlib.import_module("cv2")
        _ = cv2.IMREAD_COLOR_RGB
    except (ImportError, AttributeError) as error:
        raise DataError(
            f"OpenCV, which is to decode photos, cannot be used ({error}); install '{PACKAGE}',"
            " or decode with 'pillow'"
        ) from None
    cv2.setNumThreads(0)


def read_crop(
    path: PathLike, size: int, choose: Callable[[int, int], Box], mirror: bool = False
) -> np.ndarray:
    """What :func:`nnabla_dqa.data.photos.decode_pillow.read_crop` gives, and faster.

    Pixels differ a little:

    * A box of whole pixels is cut out, then brought to ``size``, so that pixels
      beyond it play no part. Of other boxes, those that
      :func:`nnabla_dqa.data.photos.crops.centre_box` gives in evaluation, the photo is
      resized as a whole and the box cut out of that, at whole pixels.
    * Where width and height shrink to a half or less, ``INTER_AREA`` takes the mean
      of the pixels that an output pixel covers; else ``INTER_LINEAR`` mixes the two
      by two nearest ones. Pillow's bilinear filter covers more pixels the more it
      shrinks. Of photos, the mean difference is about 0.3 levels of 255 where they
      are enlarged, and 1 to 4 where they shrink, sharp ones more.
    * A JPEG is decoded smaller by the same rule
      (:func:`nnabla_dqa.data.photos.decode_pillow.decoding_step`); the box is then rounded to
      whole pixels of the smaller photo.
    * CMYK becomes RGB by OpenCV's own formula, a level or so from Pillow's.

    Orientation in EXIF is ignored, alpha dropped and 16 bits cut to the upper 8,
    as by Pillow's reader. OpenCV itself writes a line to stderr about some of the
    files that it cannot decode.

    Args:
        path: Whatever OpenCV reads.
        size: In pixels.
        choose: Gets the photo's width and height, gives the box.
        mirror: Left to right.

    Returns:
        uint8, (3, size, size), RGB.

    Raises:
        DataError: The file is missing or is not an image that can be decoded.
    """
    content = read_content(path)
    try:
        return _crop(importlib.import_module("cv2"), content, size, choose, mirror)
    # cv2.error, ValueError of what is found here, and what Pillow raises about a header.
    except Exception as error:
        raise unreadable(path, error) from None


def _crop(
    cv2: Any, content: bytes, size: int, choose: Callable[[int, int], Box], mirror: bool
) -> np.ndarray:
    if content.startswith(JPEG_START):
        # Reads the header alone: the size decides how small OpenCV is to decode it.
        with Image.open(io.BytesIO(content), formats=("JPEG",)) as image:
            width, height = image.size
        box = choose(width, height)
        step = decoding_step(box, size)
        photo = _decode(cv2, content, step)
    else:
        step = 1
        photo = _decode(cv2, content, step)
        height, width = photo.shape[:2]
        box = choose(width, height)
    if all(side == int(side) for side in box):
        left, top, right, bottom = (round(side / step) for side in box)
        pixels = _resize(cv2, photo[top:bottom, left:right], size, size)
    else:
        pixels = _part(cv2, photo, (width, height), box, size)
    if mirror:
        pixels = cv2.flip(pixels, 1)
    planes = np.empty((3, size, size), np.uint8)
    cv2.split(pixels, list(planes))
    return planes


def _decode(cv2: Any, content: bytes, step: int) -> np.ndarray:
    flags = cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION
    if step > 1:
        flags |= getattr(cv2, f"IMREAD_REDUCED_COLOR_{step}") & ~cv2.IMREAD_COLOR
    photo: Optional[np.ndarray] = cv2.imdecode(np.frombuffer(content, np.uint8), flags)
    if photo is None:
        raise ValueError("OpenCV cannot decode it")
    return photo


def _part(cv2: Any, photo: np.ndarray, whole: Tuple[int, int], box: Box, size: int) -> np.ndarray:
    """A box of fractions of pixels: OpenCV resizes whole pixels only, so the photo, then cut."""
    x, y = size / (box[2] - box[0]), size / (box[3] - box[1])
    width, height = max(size, round(whole[0] * x)), max(size, round(whole[1] * y))
    left, top = min(round(box[0] * x), width - size), min(round(box[1] * y), height - size)
    return _resize(cv2, photo, width, height)[top : top + size, left : left + size]


def _resize(cv2: Any, photo: np.ndarray, width: int, height: int) -> np.ndarray:
    halved = photo.shape[1] >= 2 * width and photo.shape[0] >= 2 * height
    # Between one and two pixels for one, INTER_AREA takes four times as long.
    interpolation = cv2.INTER_AREA if halved else cv2.INTER_LINEAR
    pixels: np.ndarray = cv2.resize(photo, (width, height), interpolation=interpolation)
    return pixels
