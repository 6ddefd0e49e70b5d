"""Images a second of the data pipeline: CIFAR's crops and flips, and photos beside their decoder.

    python benchmarks/pipeline.py --cifar FOLDER --photos FOLDER

CIFAR: mini-batches of 128 float32 images, read, cropped, mirrored and scaled, by way of the
Prefetcher. Photos: random-resized crops of class folders of JPEGs with each decoder, on the
files as they are and on some enlarged to the usual size of ImageNet's. They take turns with

- Pillow decoding the same files in full, with as many threads, and doing nothing else
  (share_of_decoding is a decoder's rate divided by this one's);
- a plain loop of Pillow and NumPy that does the pipeline's work (share_of_plain_loop).

Shares are the median of those of the rounds. Those by processor time tell what the same work
costs where other programs take turns on the cores, too. Results go to a JSON file with the
machine and the versions.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import statistics
import sys
import tempfile
from functools import partial
from pathlib import Path
from typing import Any, Dict, List, Tuple

import numpy as np
import PIL
from PIL import Image, features
from pipeline_photos import decode_all, deliver, enlarge, plain_loop, rates_of

from nnabla_dqa._util.tables import format_table
from nnabla_dqa.data import CropFlip, open_data, open_photos
from nnabla_dqa.data.photos.photos import DECODERS

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "examples"))

from runner import environment  # noqa: E402

ROUNDS = 15
CIFAR_BATCH = 128
PHOTO_BATCH = 64
CIFAR_GOAL = 20_000
PHOTO_GOAL = 0.8


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cifar", help="folder with CIFAR's .bin files")
    parser.add_argument("--photos", help="folder with class folders of JPEGs")
    parser.add_argument("--decoders", nargs="+", default=list(DECODERS), choices=list(DECODERS))
    parser.add_argument("--sizes", type=int, nargs="+", default=[224, 112], help="of the crops")
    parser.add_argument("--count", type=int, default=128, help="photos in a round")
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--output", default=str(ROOT / "results" / "pipeline.json"))
    options = parser.parse_args()
    given = [name for name in ("cifar", "photos") if getattr(options, name)]
    command = "python benchmarks/pipeline.py" + "".join(f" --{name} FOLDER" for name in given)
    results: Dict[str, Any] = {
        "command": command,
        "load": os.getloadavg()[0],
        **environment(),
    }
    results["versions"].update(versions(options))
    rows = [("images/s", "workers", "median", "range", "needed")]
    if options.cifar:
        results["cifar"] = [cifar(options.cifar, workers) for workers in options.workers]
        for entry in results["cifar"]:
            rows.append(
                (f"CIFAR, batch {CIFAR_BATCH}", *cells(entry, "{:,.0f}"), f"{CIFAR_GOAL:,}")
            )
    if options.photos:
        results["photos"] = all_photos(options)
        for entry in results["photos"]:
            rows += photo_rows(entry)
    Path(options.output).write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    print(format_table(rows))


def versions(options: argparse.Namespace) -> Dict[str, Any]:
    found = {"pillow": PIL.__version__, "libjpeg-turbo": features.version("libjpeg_turbo")}
    if "opencv" in options.decoders:
        found["opencv"] = importlib.import_module("cv2").__version__
    return found


def cifar(folder: str, workers: int) -> Dict[str, Any]:
    data = CropFlip(open_data(folder, "train"), seed=0)
    order = np.random.RandomState(0).permutation(len(data))
    rates = [
        rates_of(partial(deliver, data.at_epoch(epoch), order, CIFAR_BATCH, workers))[0]
        for epoch in range(ROUNDS + 1)
    ]
    return {"batch": CIFAR_BATCH, **summary(rates[1:], workers)}


def all_photos(options: argparse.Namespace) -> List[Dict[str, Any]]:
    entries = []
    with tempfile.TemporaryDirectory() as place:
        data = open_photos(options.photos, "train", 1)
        chosen = np.random.RandomState(1).permutation(len(data))[: options.count]
        enlarge(data.transforms(chosen)[0], Path(place))
        for folder, made in ((options.photos, "as they are"), (place, "made by enlarging")):
            for size in options.sizes:
                for workers in options.workers:
                    entry = photos(options, folder, size, workers)
                    entries.append({"origin": made, **entry})
    return entries


def photos(options: argparse.Namespace, folder: str, size: int, workers: int) -> Dict[str, Any]:
    decoders = {name: open_photos(folder, "train", size, decoder=name) for name in options.decoders}
    data = next(iter(decoders.values()))
    order = np.random.RandomState(0).permutation(len(data))[: options.count]
    paths, _ = data.transforms(order)
    with Image.open(paths[0]) as image:
        files = f"{image.width}x{image.height}"
    rates: Dict[str, List[Tuple[float, float]]] = {
        n: [] for n in ("decoding", "plain_loop", *decoders)
    }
    # The first round reads the files into memory.
    for epoch in range(ROUNDS + 1):
        transforms = data.at_epoch(epoch).transforms(order)[1]
        calls = {
            "decoding": partial(decode_all, paths, workers),
            "plain_loop": partial(plain_loop, paths, transforms, size, workers),
        }
        for name, view in decoders.items():
            calls[name] = partial(deliver, view.at_epoch(epoch), order, PHOTO_BATCH, workers)
        for name, call in calls.items():
            rates[name].append(rates_of(call))

    def shares(base: str, which: int) -> Dict[str, Any]:
        pairs = {name: zip(rates[name][1:], rates[base][1:]) for name in decoders}
        return {
            name: summary([own[which] / other[which] for own, other in rounds], workers)
            for name, rounds in pairs.items()
        }

    return {
        "files": files,
        "mean_bytes": round(statistics.mean(os.path.getsize(path) for path in paths)),
        "size": size,
        "batch": PHOTO_BATCH,
        "share_of_decoding": shares("decoding", 0),
        "share_of_decoding_by_processor_time": shares("decoding", 1),
        "share_of_plain_loop": shares("plain_loop", 0),
        "share_of_plain_loop_by_processor_time": shares("plain_loop", 1),
        "images_per_second": {
            name: summary([wall for wall, _ in v[1:]], workers) for name, v in rates.items()
        },
    }


def photo_rows(entry: Dict[str, Any]) -> List[Tuple[str, ...]]:
    rows = []
    title = f"{entry['files']} to {entry['size']}"
    for name, figures in entry["images_per_second"].items():
        rows.append((f"{title}, {name}", *cells(figures, "{:,.0f}"), ""))
        for key in [key for key in entry if key.startswith("share") and name in entry[key]]:
            needed = f"{PHOTO_GOAL}" if "decoding" in key else ""
            share = cells(entry[key][name], "{:.2f}")
            rows.append((f"  {key[6:].replace('_', ' ')}", *share, needed))
    return rows


def summary(values: List[float], workers: int) -> Dict[str, Any]:
    median = statistics.median(values)
    figures = {"median": median, "low": min(values), "high": max(values)}
    return {"workers": workers, **{name: float(f"{v:.4g}") for name, v in figures.items()}}


def cells(entry: Dict[str, Any], form: str) -> List[str]:
    low, high = form.format(entry["low"]), form.format(entry["high"])
    return [str(entry["workers"]), form.format(entry["median"]), f"{low} - {high}"]


if __name__ == "__main__":
    main()
