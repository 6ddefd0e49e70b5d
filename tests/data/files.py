"""Small files in the forms of real data sets."""

from __future__ import annotations

import gzip
import struct
from pathlib import Path

import numpy as np
from PIL import Image

REAL = Path(__file__).resolve().parents[3] / "shared" / "data"


def idx_bytes(magic, counts, body):
    return struct.pack(f">{1 + len(counts)}I", magic, *counts) + body


def write_mnist(folder, subset="train", count=6, size=(4, 5), zipped=False):
    """Images and labels of MNIST's form; returns them and the path of the images."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.RandomState(count)
    pixels = rng.randint(0, 256, (count, *size)).astype(np.uint8)
    labels = rng.randint(0, 10, count).astype(np.uint8)
    prefix = {"train": "train", "validation": "t10k"}[subset]
    suffix = ".gz" if zipped else ""
    pack = gzip.compress if zipped else bytes
    images = folder / f"{prefix}-images-idx3-ubyte{suffix}"
    images.write_bytes(pack(idx_bytes(0x803, pixels.shape, pixels.tobytes())))
    path = folder / f"{prefix}-labels-idx1-ubyte{suffix}"
    path.write_bytes(pack(idx_bytes(0x801, labels.shape, labels.tobytes())))
    return pixels, labels, images


def write_records(path, count, label_bytes=1, classes=10, seed=0):
    """CIFAR's binary records; returns pixels and labels."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.RandomState(seed)
    labels = rng.randint(0, classes, (count, label_bytes)).astype(np.uint8)
    pixels = rng.randint(0, 256, (count, 3072)).astype(np.uint8)
    path.write_bytes(np.concatenate([labels, pixels], axis=1).tobytes())
    return pixels.reshape(-1, 3, 32, 32), labels[:, -1]


def write_image(path, shape=(6, 5, 3), seed=0, **options):
    """A picture of random pixels, (H, W) or (H, W, C); returns them."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.RandomState(seed).randint(0, 256, shape).astype(np.uint8)
    Image.fromarray(pixels).save(path, **options)
    return pixels


def whole(data):
    """All samples as one batch."""
    return data.batch(np.arange(len(data)))
