"""Accuracy of NNP files in a plain NNabla: this process cannot import nnabla_dqa.

python examples/evaluate_plain.py DATA.npz FILE.nnp ...

DATA.npz holds ``x`` (images as the files' input wants them) and ``t`` (classes).
Prints one JSON object, file to accuracy in percent.
"""

from __future__ import annotations

import json
import sys

sys.modules["nnabla_dqa"] = None  # type: ignore[assignment]

import nnabla as nn  # noqa: E402
import numpy as np  # noqa: E402

BATCH = 500


def accuracy(path: str, x: np.ndarray, t: np.ndarray) -> float:
    """Share of the images, in percent, for which the network's largest output is ``t``."""
    graph = nn.graph_def.load(path)
    names = [executor.proto.network_name for executor in graph.executors.values()]
    network = graph.networks[names[0]] if names else graph.default_graph()
    right = 0
    for start in range(0, len(x), BATCH):
        part = nn.Variable.from_numpy_array(x[start : start + BATCH])
        y = network(part, batch_size=len(part.d))
        y.forward(clear_buffer=True)
        right += int((y.d.argmax(axis=1) == t[start : start + BATCH]).sum())
    return 100 * (right / len(x))


def main() -> None:
    data, *files = sys.argv[1:]
    with np.load(data) as arrays:
        x, t = arrays["x"], arrays["t"]
    print(json.dumps({path: accuracy(path, x, t) for path in files}))


if __name__ == "__main__":
    main()
