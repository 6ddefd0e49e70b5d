"""Makes a small float NNP and its data to try nnabla-dqa on; knows nothing of quantization.

python examples/nnp/digits.py FOLDER

Trains a net of plain NNabla on 1,297 of scikit-learn's scanned digits and writes digits.nnp (with
networks Main, MainValidation and MainRuntime over one set of parameters and an optimizer, like a
file of Neural Network Console), digits_train.npz and digits_test.npz (500 images). Under a minute.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, Tuple

import nnabla as nn
import nnabla.functions as F
import nnabla.parametric_functions as PF
import nnabla.solvers as S
import numpy as np
from nnabla.utils.save import save
from sklearn.datasets import load_digits

EPOCHS = 30
BATCH = 32


def load() -> Tuple[np.ndarray, np.ndarray]:
    """All 1,797 digits, shuffled: images (N, 1, 8, 8) in 0..1 and classes (N, 1)."""
    digits = load_digits()
    order = np.random.RandomState(0).permutation(len(digits.target))
    return (digits.images[order, None] / 16).astype(np.float32), digits.target[order, None]


def network(x: Any, train: bool) -> Any:
    """Two convolutions with batch normalization, two affine layers; returns the scores."""
    h = F.relu(PF.batch_normalization(conv(x, 16, "conv1"), batch_stat=train, name="bn1"))
    h = F.max_pooling(h, (2, 2))
    h = F.relu(PF.batch_normalization(conv(h, 32, "conv2"), batch_stat=train, name="bn2"))
    h = F.max_pooling(h, (2, 2))
    return PF.affine(F.relu(PF.affine(h, 64, name="fc1")), 10, name="fc2")


def conv(x: Any, maps: int, name: str) -> Any:
    """A 3x3 convolution that keeps the size."""
    return PF.convolution(x, maps, (3, 3), pad=(1, 1), with_bias=False, name=name)


def main(folder: Path, held_out: int = 0) -> None:
    """Train and write.

    Args:
        folder: Made if it is not there.
        held_out: Training images that the net does not see, for digits_held.npz.
    """
    nn.seed(0)
    np.random.seed(0)
    images, classes = load()
    x, t = nn.Variable((BATCH, 1, 8, 8)), nn.Variable((BATCH, 1))
    losses = {
        name: F.softmax_cross_entropy(network(x, train), t)
        for name, train in (("Main", True), ("MainValidation", False))
    }
    probability = F.softmax(network(x, train=False), axis=1)
    solver = S.Adam(1e-3)
    solver.set_parameters(nn.get_parameters())
    loss = F.mean(losses["Main"])
    for epoch in range(EPOCHS):
        order = np.random.RandomState(epoch).permutation(np.arange(500 + held_out, len(images)))
        for i in range(0, len(order) - BATCH + 1, BATCH):
            x.d, t.d = images[order[i : i + BATCH]], classes[order[i : i + BATCH]]
            loss.forward()
            solver.zero_grad()
            loss.backward()
            solver.update()
    networks = [
        {"name": name, "batch_size": BATCH, "outputs": {"loss": v}, "names": {"x": x, "y": t}}
        for name, v in losses.items()
    ]
    runtime = {"name": "MainRuntime", "batch_size": BATCH, "outputs": {"p": probability}}
    data = {"name": "digits", "uri": "digits_train.npz", "cache_dir": "", "shuffle": True}
    data.update(batch_size=BATCH, no_image_normalization=True, variables={"x": x, "y": t})
    training = {"name": "optimizer", "solver": solver, "network": "Main", "dataset": "digits"}
    training.update(weight_decay=0, lr_decay=1, lr_decay_interval=1, update_interval=1)
    contents = {
        "networks": [*networks, {**runtime, "names": {"x": x}}],
        "executors": [
            {"name": "runtime", "network": "MainRuntime", "data": ["x"], "output": ["p"]}
        ],
        "optimizers": [training],
        "datasets": [data],
    }
    folder.mkdir(parents=True, exist_ok=True)
    save(str(folder / "digits.nnp"), contents)
    np.savez(folder / "digits_test.npz", x=images[:500], y=classes[:500])
    first = 500 + held_out
    np.savez(folder / "digits_train.npz", x=images[first:], y=classes[first:])
    if held_out:
        np.savez(folder / "digits_held.npz", x=images[500:first], y=classes[500:first])


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(Path(sys.argv[1]))
