"""Images a second of the data pipeline: CIFAR's crops and flips, and photos beside their decoder.

    python benchmarks/pipeline.py --cifar FOLDER --photos FOLDER [--dali]

CIFAR: mini-batches of 128 float32 images, read, cropped, mirrored and scaled, by way of the
Prefetcher. Photos: random-resized crops of class folders of JPEGs, beside Pillow decoding the
same files in full with as many threads and doing nothing else; the two take turns, and the
share is the median of the rounds. With --dali, NVIDIA DALI on the CPU takes turns with them.
Results go to a JSON file with the machine and the versions.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import statistics
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Callable, Dict, List

import numpy as np
import PIL
from PIL import Image, features

from nnabla_dqa.data import CropFlip, Data, Prefetcher, open_data, open_photos
from nnabla_dqa.data.dali import DaliPhotos
from nnabla_dqa.reporting.summary import format_table

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "examples"))

from runner import environment  # noqa: E402

ROUNDS = 7
CIFAR_BATCH = 128
PHOTO_BATCH = 64
CIFAR_GOAL = 20_000
PHOTO_GOAL = 0.8


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cifar", help="folder with CIFAR's .bin files")
    parser.add_argument("--photos", help="folder with class folders of JPEGs")
    parser.add_argument("--dali", action="store_true", help="needs nvidia-dali")
    parser.add_argument("--sizes", type=int, nargs="+", default=[224, 112], help="of the crops")
    parser.add_argument("--count", type=int, default=768, help="photos in a round")
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--output", default=str(ROOT / "results" / "pipeline.json"))
    options = parser.parse_args()
    given = [name for name in ("cifar", "photos") if getattr(options, name)]
    command = "python benchmarks/pipeline.py" + "".join(f" --{name} FOLDER" for name in given)
    results: Dict[str, Any] = {
        "command": command + " --dali" * options.dali,
        "load": os.getloadavg()[0],
        **environment(),
    }
    results["versions"].update(
        pillow=PIL.__version__, **{"libjpeg-turbo": features.version("libjpeg_turbo")}
    )
    if options.dali:
        results["versions"]["dali"] = importlib.import_module("nvidia.dali").__version__
    rows = [("images/s", "workers", "median", "range", "needed")]
    if options.cifar:
        results["cifar"] = [cifar(options.cifar, workers) for workers in options.workers]
        for entry in results["cifar"]:
            rows.append(
                (f"CIFAR, batch {CIFAR_BATCH}", *cells(entry, "{:,.0f}"), f"{CIFAR_GOAL:,}")
            )
    if options.photos:
        results["photos"] = [
            photos(options, size, workers) for size in options.sizes for workers in options.workers
        ]
        for entry in results["photos"]:
            name = f"photos {entry['files']} to {entry['size']}"
            rows.append((name, *cells(entry["pipeline"], "{:,.0f}"), ""))
            if options.dali:
                rows.append(("  DALI", *cells(entry["dali"], "{:,.0f}"), ""))
            rows.append(("  Pillow decoding", *cells(entry["decoding"], "{:,.0f}"), ""))
            rows.append(("  share", *cells(entry["share"], "{:.2f}"), f"{PHOTO_GOAL}"))
    Path(options.output).write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    print(format_table(rows))


def cifar(folder: str, workers: int) -> Dict[str, Any]:
    data = CropFlip(open_data(folder, "train"), seed=0)
    order = np.random.RandomState(0).permutation(len(data))
    rates = [
        rate(lambda epoch=epoch: deliver(data.at_epoch(epoch), order, CIFAR_BATCH, workers))
        for epoch in range(ROUNDS + 1)
    ]
    return {"batch": CIFAR_BATCH, **summary(rates[1:], workers)}


def photos(options: argparse.Namespace, size: int, workers: int) -> Dict[str, Any]:
    data = open_photos(options.photos, "train", size)
    order = np.random.RandomState(0).permutation(len(data))[: options.count]
    paths, _ = data.plan(order)
    with Image.open(paths[0]) as image:
        files = f"{image.width}x{image.height}"
    dali = DaliPhotos(data, threads=workers) if options.dali else None
    rates: Dict[str, List[float]] = {"decoding": [], "pipeline": [], "dali": []}
    # The first round reads the files into memory.
    for epoch in range(ROUNDS + 1):
        rates["decoding"].append(rate(lambda: decode_all(paths, workers)))
        view = data.at_epoch(epoch)
        rates["pipeline"].append(rate(lambda view=view: deliver(view, order, PHOTO_BATCH, workers)))
        if dali is not None:
            seen = dali.at_epoch(epoch)
            rates["dali"].append(rate(lambda seen=seen: deliver(seen, order, PHOTO_BATCH, 2)))
    shares = [own / alone for own, alone in zip(rates["pipeline"], rates["decoding"])]
    return {
        "size": size,
        "files": files,
        "batch": PHOTO_BATCH,
        "share": summary(shares[1:], workers),
        **{name: summary(values[1:], workers) for name, values in rates.items() if values},
    }


def deliver(data: Data, order: np.ndarray, batch: int, workers: int) -> int:
    """How many images were delivered."""
    indices = [order[i : i + batch] for i in range(0, len(order), batch)]
    with Prefetcher(data.batch, indices, workers) as batches:
        return sum(len(columns["x"]) for columns in batches)


def decode_all(paths: List[str], workers: int) -> int:
    with ThreadPoolExecutor(workers) as pool:
        return sum(pool.map(decode, paths))


def decode(path: str) -> int:
    with Image.open(path) as image:
        image.load()
    return 1


def rate(call: Callable[[], int]) -> float:
    start = time.perf_counter()
    count = call()
    return count / (time.perf_counter() - start)


def summary(values: List[float], workers: int) -> Dict[str, Any]:
    median = statistics.median(values)
    figures = {"median": median, "low": min(values), "high": max(values)}
    return {"workers": workers, **{name: float(f"{v:.4g}") for name, v in figures.items()}}


def cells(entry: Dict[str, Any], form: str) -> List[str]:
    low, high = form.format(entry["low"]), form.format(entry["high"])
    return [str(entry["workers"]), form.format(entry["median"]), f"{low} - {high}"]


if __name__ == "__main__":
    main()
