"""Photos decoded, cropped and resized by NVIDIA DALI, where it is installed."""

from __future__ import annotations

import copy
import importlib
import threading
from typing import Any, Dict, List, Optional, Tuple

import numpy as np
from PIL import Image

from nnabla_dqa._util.messages import one_line
from nnabla_dqa.data.base import DataError, View
from nnabla_dqa.data.crops import Box
from nnabla_dqa.data.photos import How, Photos
from nnabla_dqa.quantization.validation import is_int


class DaliPhotos(View):
    """The same samples as :class:`nnabla_dqa.data.photos.Photos`, with DALI doing the work.

    Which box of a photo is seen and whether it is mirrored comes from the photos'
    own random numbers, so that it depends on seed, epoch and row alone; DALI draws
    none. Pixels differ a little from Pillow's: by rounding, at the edges of a box,
    beyond which DALI does not look, and, on a GPU, by its JPEG decoder.

    After an error of DALI the photos it was about are decoded one by one. About
    one that fails alone the photos themselves are asked. If they cannot read it
    either, they raise or skip as they were told; the photo that takes its place in
    training is decoded by DALI. If they can, the fault is DALI's or the machine's,
    and that is an error: no other reader steps in. So the pixels of a sample depend
    on that sample alone. Threads take turns at the pipeline, which has its own.

    Args:
        photos: From :func:`nnabla_dqa.data.open_photos`.
        device_id: The GPU that decodes and resizes. None uses the CPU.
        threads: Of DALI, on the CPU.
        batch: Photos that DALI takes at once; larger mini-batches go in parts.

    Raises:
        DataError: DALI is not installed, or an argument is out of range; when read,
            a photo that DALI cannot decode and Pillow can, or no reader can.
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
        super().__init__(photos)
        self._photos = photos
        self._decoder = _Decoder(photos.shapes["x"][1], device_id, threads, batch)

    def at_epoch(self, epoch: int) -> DaliPhotos:
        return self._of(self._photos.at_epoch(epoch))

    def _select(self, rows: np.ndarray) -> DaliPhotos:
        return self._of(self._photos._select(rows))

    def _of(self, photos: Photos) -> DaliPhotos:
        view = copy.copy(self)
        view._data = view._photos = photos
        return view

    def _read(self, rows: np.ndarray) -> Dict[str, np.ndarray]:
        x = np.empty((len(rows), *self.shapes["x"]), np.float32)
        seen: List[int] = []
        for start in range(0, len(rows), self._decoder.batch):
            for row, pixels in self._part(rows[start : start + self._decoder.batch]):
                np.multiply(pixels, self._photos.look.scale, out=x[len(seen)])
                seen.append(row)
        return {"x": x[: len(seen)], "y": self._photos.labels(np.array(seen, np.int64))}

    def _part(self, rows: np.ndarray) -> List[Tuple[int, np.ndarray]]:
        """The rows that are seen for ``rows``, each with its pixels, uint8 (3, size, size)."""
        paths, hows = self._photos.plan(rows)
        try:
            return list(zip(rows.tolist(), self._decode(paths, hows)))
        # Pillow's parsers raise all kinds of errors, and DALI hands on those of CUDA, of memory
        # and of its decoders; it does not say which photo one was about.
        except Exception:
            alone = [self._alone(*one) for one in zip(rows.tolist(), paths, hows)]
        return [(row, pixels) for row, pixels in alone if pixels is not None]

    def _alone(self, row: int, path: str, how: How) -> Tuple[int, Optional[np.ndarray]]:
        """The row that is seen for ``row``, and its pixels; None if it is skipped."""
        try:
            return row, self._decode([path], [how])[0]
        # As above.
        except Exception as error:
            found, pixels = self._photos._readable(row, how)
            if pixels is None:
                return found, None
            if found == row:
                raise DataError(
                    f"{path}: DALI cannot decode it, though it can be read: {_reason(error)}; to"
                    " go on without DALI take reader pillow"
                ) from None
        (path,), (how,) = self._photos.plan(np.array([found]))
        return self._alone(found, path, how)

    def _decode(self, paths: List[str], hows: List[How]) -> np.ndarray:
        """uint8, (N, 3, size, size)."""
        files: List[np.ndarray] = []
        boxes: List[Box] = []
        for path, (choose, _) in zip(paths, hows):
            with Image.open(path) as image:
                boxes.append(choose(*image.size))
            files.append(np.fromfile(path, np.uint8))
        return self._decoder.run(files, boxes, [mirror for _, mirror in hows])


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

    def run(self, files: List[np.ndarray], boxes: List[Box], mirrored: List[bool]) -> np.ndarray:
        """uint8, (N, 3, size, size); an error of DALI, whatever it is about, passes."""
        with self._lock:
            try:
                return self._run(files, boxes, mirrored)
            except Exception:
                # DALI says that a pipeline is of no use after an error.
                self._pipeline = None
                raise

    def _run(self, files: List[np.ndarray], boxes: List[Box], mirrored: List[bool]) -> np.ndarray:
        corners = [_corners(box) for box in boxes]
        if self._pipeline is None:
            self._pipeline = self._build()
        self._pipeline.feed_input("files", files)
        self._pipeline.feed_input("starts", [start for start, _ in corners])
        self._pipeline.feed_input("ends", [end for _, end in corners])
        self._pipeline.feed_input("mirrored", [np.array(m, np.int32) for m in mirrored])
        (images,) = self._pipeline.run()
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


def _reason(error: Exception) -> str:
    """What DALI says, without the places in this file and in DALI's sources around it."""
    text = str(error).partition("encountered:")[2] or str(error)
    return one_line(RuntimeError(text.partition("Stacktrace")[0]))


def _corners(box: Box) -> Tuple[np.ndarray, np.ndarray]:
    """Top and left, bottom and right: DALI's order is that of the array's axes."""
    return np.array(box[1::-1], np.float32), np.array(box[:1:-1], np.float32)
