"""What the photo pipeline is measured against, and the photos it is measured on."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Callable, List, Sequence, Tuple

import numpy as np
from PIL import Image

from nnabla_dqa.data import Data, Prefetcher
from nnabla_dqa.data.photos.crops import Transform

LARGE = (500, 375)
"""The usual size of ImageNet's photos."""

LARGE_QUALITY = 100
"""Gives enlarged photos about as many bytes as ImageNet's have, 100 kB."""


def enlarge(paths: Sequence[str], folder: Path) -> None:
    """Class folders of the middle of each photo, brought to ``LARGE``, as JPEGs."""
    for i, path in enumerate(paths):
        with Image.open(path) as image:
            width, height = image.size
            tall = min(height, width * LARGE[1] / LARGE[0])
            box = (0, (height - tall) / 2, width, (height + tall) / 2)
            large = image.convert("RGB").resize(LARGE, Image.Resampling.LANCZOS, box)
        place = folder / "train" / Path(path).parent.name
        place.mkdir(parents=True, exist_ok=True)
        large.save(place / f"{i}.jpg", quality=LARGE_QUALITY)


def deliver(data: Data, order: np.ndarray, batch: int, workers: int) -> int:
    """Run the pipeline; how many images were delivered."""
    indices = [order[i : i + batch] for i in range(0, len(order), batch)]
    with Prefetcher(data.batch, indices, workers) as batches:
        return sum(len(columns["x"]) for columns in batches)


def decode_all(paths: Sequence[str], workers: int) -> int:
    """Open and load the files with Pillow, and nothing else."""

    def decode(path: str) -> None:
        with Image.open(path) as image:
            image.load()

    return _share(decode, [(path,) for path in paths], workers)


def plain_loop(
    paths: Sequence[str], transforms: Sequence[Transform], size: int, workers: int
) -> int:
    """The pipeline's work with Pillow and NumPy, as one writes it down, each photo by itself."""

    def load(path: str, transform: Transform) -> np.ndarray:
        choose, mirror = transform
        with Image.open(path) as image:
            part = image.convert("RGB").resize(
                (size, size), Image.Resampling.BILINEAR, choose(*image.size)
            )
        if mirror:
            part = part.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        planes = np.ascontiguousarray(np.asarray(part).transpose(2, 0, 1))
        return planes * np.float32(1 / 255)

    return _share(load, list(zip(paths, transforms)), workers)


def _share(call: Callable[..., Any], arguments: List[Tuple[Any, ...]], workers: int) -> int:
    """Each thread takes its share of the calls beforehand, without a queue between them."""

    def some(first: int) -> int:
        mine = arguments[first::workers]
        for one in mine:
            call(*one)
        return len(mine)

    with ThreadPoolExecutor(workers) as pool:
        return sum(pool.map(some, range(workers)))


def rates_of(call: Callable[[], int]) -> Tuple[float, float]:
    """What ``call`` counts, per second and per second of processor time, of all threads."""
    start, used = time.perf_counter(), time.process_time()
    count = call()
    return count / (time.perf_counter() - start), count / (time.process_time() - used)
