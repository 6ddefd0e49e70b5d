"""examples/imagenet/evaluate.py counts what numpy counts, and refuses in one line."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import nnabla as nn
import nnabla.parametric_functions as PF
import numpy as np
import pytest
from nnabla.utils.save import save
from PIL import Image

from nnabla_dqa.data.photos import open_photos

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parent.parent
CLASSES, PHOTOS = 7, 8
"""56 photos: more than one mini-batch of the script, the last one not full."""


def evaluate(*arguments):
    return subprocess.run(
        [sys.executable, str(ROOT / "examples/imagenet/evaluate.py"), *map(str, arguments)],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )


def network(path, shape):
    x = nn.Variable(shape)
    y = PF.affine(x, CLASSES, name="fc", rng=np.random.RandomState(3))
    save(str(path), {"networks": [
        {"name": "n", "batch_size": shape[0], "outputs": {"y": y}, "names": {"x": x}}
    ]})  # fmt: skip


def test_top_1_and_top_5(tmp_path):
    rng = np.random.RandomState(0)
    for number in range(CLASSES):
        folder = tmp_path / "data/val" / f"n{number}"
        folder.mkdir(parents=True)
        (tmp_path / "data/train" / f"n{number}").mkdir(parents=True)
        for i in range(PHOTOS):
            picture = rng.randint(0, 256, (12 + i, 15, 3)).astype(np.uint8)
            Image.fromarray(picture).save(folder / f"{i}.png")
    network(tmp_path / "n.nnp", (2, 3, 8, 8))
    done = evaluate(tmp_path / "n.nnp", "--data", tmp_path / "data")
    assert (done.returncode, done.stderr) == (0, "")

    data = open_photos(tmp_path / "data", "validation", 8)
    batch = data.batch(np.arange(len(data)))
    weights = nn.get_parameters()["fc/affine/W"].d
    scores = batch["x"].reshape(len(data), -1).astype(np.float64) @ weights
    ranks = (scores > np.take_along_axis(scores, batch["y"].astype(int), 1)).sum(axis=1)
    first, five = (ranks == 0).mean(), (ranks < 5).mean()
    assert 0 < first < five < 1
    assert done.stdout.endswith(f"n.nnp: top-1 {first:.4f}, top-5 {five:.4f} on {len(data)}\n")


def test_refusals(tmp_path):
    network(tmp_path / "n.nnp", (2, 3, 8, 6))
    done = evaluate(tmp_path / "n.nnp", "--data", tmp_path)
    assert done.returncode == 2
    assert "input x takes (3, 8, 6), not (3, N, N)" in done.stderr
