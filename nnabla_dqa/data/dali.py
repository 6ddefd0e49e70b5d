"""Photos decoded, cropped and resized by NVIDIA DALI, where it is installed."""

from __future__ import annotations

import copy
import importlib
import threading
from typing import Any, Dict, List, Optional, Tuple

import numpy as np
from PIL import Image

from nnabla_dqa.data.base import Data, DataError, Shape
from nnabla_dqa.data.crops import Box
from nnabla_dqa.data.photos import Photos
from nnabla_dqa.quantization.validation import is_int


class DaliPhotos(Data):
    """The same samples as :class:`nnabla_dqa.data.photos.Photos`, with DALI doing the work.

    Which box of a photo is seen and whether it is mirrored comes from the photos'
    own random numbers, so that it depends on seed, epoch and row alone; DALI draws
    none. Pixels differ a little from Pillow's: by rounding, at the edges of a box,
    beyond which DALI does not look, and, on a GPU, by its JPEG decoder.

    A mini-batch with a file that DALI cannot decode is read by the photos
    themselves, which raise or skip as they were told. Threads take turns at the
    pipeline, which has its own.

    Args:
        photos: From :func:`nnabla_dqa.data.open_photos`.
        device_id: The GPU that decodes and resizes. None uses the CPU.
        threads: Of DALI, on the CPU.
        batch: Photos that DALI takes at once; larger mini-batches go in parts.

    Raises:
        DataError: DALI is not installed, or an argument is out of range.
    """

    def __init__(
        self,
        photos: Photos,
        device_id: Optional[int] = None,
        threads: int = 2,
        batch: int = 64,
    ) -> None:
        for name, value in (("threads", threads), ("batch", batch)):
            if not is_int(value) or value < 1:
                raise DataError(f"DaliPhotos: {name}={value!r} is not a whole number above 0")
        if device_id is not None and (not is_int(device_id) or device_id < 0):
            raise DataError(f"DaliPhotos: device_id={device_id!r} is not the number of a GPU")
        self._photos = photos
        self._decoder = _Decoder(photos.shapes["x"][1], device_id, threads, batch)
        self.classes = photos.classes

    def __len__(self) -> int:
        return len(self._photos)

    @property
    def shapes(self) -> Dict[str, Shape]:
        return self._photos.shapes

    @property
    def skipped(self) -> Dict[str, str]:
        return self._photos.skipped

    def at_epoch(self, epoch: int) -> DaliPhotos:
        return self._of(self._photos.at_epoch(epoch))

    def _select(self, rows: np.ndarray) -> DaliPhotos:
        return self._of(self._photos._select(rows))

    def _of(self, photos: Photos) -> DaliPhotos:
        view = copy.copy(self)
        view._photos = photos
        return view

    def _read(self, rows: np.ndarray) -> Dict[str, np.ndarray]:
        x = np.empty((len(rows), *self.shapes["x"]), np.float32)
        for start in range(0, len(rows), self._decoder.batch):
            part = rows[start : start + self._decoder.batch]
            pixels = self._pixels(part)
            if pixels is None:
                return self._photos._read(rows)
            np.multiply(pixels, self._photos.look.scale, out=x[start : start + len(part)])
        return {"x": x, "y": self._photos.labels(rows)}

    def _pixels(self, rows: np.ndarray) -> Optional[np.ndarray]:
        """uint8, (N, 3, size, size), or None where a file cannot be read."""
        files: List[np.ndarray] = []
        boxes: List[Box] = []
        mirrored: List[bool] = []
        try:
            for path, (choose, mirror) in zip(*self._photos.plan(rows)):
                with Image.open(path) as image:
                    boxes.append(choose(*image.size))
                mirrored.append(mirror)
                files.append(np.fromfile(path, np.uint8))
        # As in images.py: Pillow's parsers raise all kinds of errors.
        except Exception:
            return None
        return self._decoder.run(files, boxes, mirrored)


class _Decoder:
    """One DALI pipeline, for one thread at a time."""

    def __init__(self, size: int, device_id: Optional[int], threads: int, batch: int) -> None:
        try:
            self._dali: Any = importlib.import_module("nvidia.dali")
            importlib.import_module("nvidia.dali.fn")
        except ImportError as error:
            raise DataError(
                f"DaliPhotos: NVIDIA DALI cannot be imported ({error}); install"
                " nvidia-dali-cuda120, or leave it out"
            ) from None
        self._size = size
        self._device_id = device_id
        self._threads = threads
        self.batch = batch
        self._lock = threading.Lock()
        self._pipeline: Any = None

    def run(
        self, files: List[np.ndarray], boxes: List[Box], mirrored: List[bool]
    ) -> Optional[np.ndarray]:
        """uint8, (N, 3, size, size), or None if DALI cannot decode one of the files."""
        corners = [_corners(box) for box in boxes]
        with self._lock:
            if self._pipeline is None:
                self._pipeline = self._build()
            self._pipeline.feed_input("files", files)
            self._pipeline.feed_input("starts", [start for start, _ in corners])
            self._pipeline.feed_input("ends", [end for _, end in corners])
            self._pipeline.feed_input("mirrored", [np.array(m, np.int32) for m in mirrored])
            try:
                (images,) = self._pipeline.run()
            except RuntimeError:
                # DALI says that a pipeline is of no use after an error.
                self._pipeline = None
                return None
            if self._device_id is not None:
                images = images.as_cpu()
            # The pipeline uses its memory again.
            return np.array(images.as_array())

    def _build(self) -> Any:
        fn, types = self._dali.fn, self._dali.types
        gpu = self._device_id is not None
        pipeline = self._dali.Pipeline(
            batch_size=self.batch,
            num_threads=self._threads,
            device_id=self._device_id,
            prefetch_queue_depth=1,
            exec_async=False,
            exec_pipelined=False,
        )
        with pipeline:
            images = fn.decoders.image(
                fn.external_source(name="files", dtype=types.UINT8, ndim=1),
                device="mixed" if gpu else "cpu",
                output_type=types.RGB,
                adjust_orientation=False,
                jpeg_fancy_upsampling=True,
            )
            images = fn.resize(
                images,
                size=[self._size, self._size],
                roi_start=fn.external_source(name="starts", dtype=types.FLOAT, ndim=1),
                roi_end=fn.external_source(name="ends", dtype=types.FLOAT, ndim=1),
                interp_type=types.INTERP_LINEAR,
                antialias=True,
            )
            images = fn.crop_mirror_normalize(
                images,
                mirror=fn.external_source(name="mirrored", dtype=types.INT32, ndim=0),
                dtype=types.UINT8,
                output_layout="CHW",
            )
            pipeline.set_outputs(images)
        pipeline.build()
        return pipeline


def _corners(box: Box) -> Tuple[np.ndarray, np.ndarray]:
    """Top and left, bottom and right: DALI's order is that of the array's axes."""
    return np.array(box[1::-1], np.float32), np.array(box[:1:-1], np.float32)
