"""The accuracy of an NNP on photos: the short side resized, the middle taken, as in training.

python examples/imagenet/evaluate.py runs/imagenette-0/deployed.nnp --data imagenette2

The crops have the size of the network's input; pixels go in from 0 to 1, as all networks of
nnabla-dqa train take them. DATA has val/<class>/, and train/<class>/ that number the classes.
"""

from __future__ import annotations

import argparse
import logging
import sys

# NNabla greets on stderr when it is imported.
logging.disable(logging.INFO)

import nnabla as nn  # noqa: E402
import numpy as np  # noqa: E402
from tqdm import tqdm  # noqa: E402

from nnabla_dqa.data import DataError  # noqa: E402
from nnabla_dqa.data.photos import open_photos  # noqa: E402

BATCH = 50


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("input", metavar="NNP", help="a float or deployed network of a run")
    parser.add_argument("--data", required=True, help="folder of the photos")
    arguments = parser.parse_args()
    try:
        graph = nn.graph_def.load(arguments.input)
        (name,) = graph.default_graph().inputs
        shape = graph.default_graph().variables[name].shape
        if len(shape) != 4 or shape[1] != 3 or shape[2] != shape[3]:
            raise ValueError(f"{arguments.input}: input {name} takes {shape[1:]}, not (3, N, N)")
        photos = open_photos(arguments.data, "validation", shape[-1])
        x = nn.Variable((BATCH, *shape[1:]))
        first, five = count(x, graph(x), photos)
    except (DataError, OSError, ValueError) as error:
        parser.error(" ".join(str(error).split()))
    total = len(photos)
    print(f"{arguments.input}: top-1 {first / total:.4f}, top-5 {five / total:.4f} on {total:,}")
    return 0


def count(x: nn.Variable, logits: nn.Variable, photos) -> tuple:
    """How many photos are of the class with the highest output, and of one of the five highest."""
    first = five = 0
    for start in tqdm(range(0, len(photos), BATCH), disable=None, leave=False):
        batch = photos.batch(np.arange(start, min(start + BATCH, len(photos))))
        number = len(batch["y"])
        x.d[:number] = batch["x"]
        logits.forward(clear_buffer=True)
        best = np.argsort(-logits.d[:number], axis=1, kind="stable")[:, :5]
        hits = best == batch["y"]
        first += int(hits[:, 0].sum())
        five += int(hits.any(axis=1).sum())
    return first, five


if __name__ == "__main__":
    sys.exit(main())
