"""Size of deployed files as networks grow: six 3x3 convolutions, normally distributed weights.

    python benchmarks/file_size.py

The networks are untrained; what a file takes depends on how often each level occurs, which
training changes. Prints bytes of the whole file and bits per weight on disk.
"""

from __future__ import annotations

import tempfile
from typing import Any, Tuple

import nnabla as nn
import nnabla.initializer as I
import numpy as np

import nnabla_dqa as dqa
import nnabla_dqa.parametric_functions as PF
from nnabla_dqa._util.tables import format_table

QUANTIZERS = {
    "float": dqa.FullPrecision(),
    "MinMax(2)": dqa.MinMax(2),
    "SAWB(2)": dqa.SAWB(2),
    "TWN()": dqa.TWN(),
    "BWN()": dqa.BWN(),
}


def network(width: int, quantizer: dqa.Quantizer) -> Tuple[Any, Any]:
    nn.clear_parameters()
    rng = np.random.RandomState(0)
    x = h = nn.Variable((1, width, 8, 8))
    with dqa.quantizers(quantizer):
        for i in range(6):
            init = I.NormalInitializer(0.05, rng)
            h = PF.dqa_convolution(
                h, width, (3, 3), (1, 1), w_init=init, with_bias=False, name=f"c{i}"
            )
    return x, h


def main() -> None:
    rows = [("weights", *QUANTIZERS)]
    for width in (16, 32, 64, 128):
        cells = [f"{6 * 9 * width**2:,}"]
        for quantizer in QUANTIZERS.values():
            x, y = network(width, quantizer)
            with tempfile.TemporaryDirectory() as folder:
                result = dqa.deploy(f"{folder}/d.nnp", {"x": x}, {"y": y})
            bits = result.file_bits_per_parameter
            cells.append(f"{result.file_bytes:,} ({bits:.2f})")
        rows.append(tuple(cells))
    print("bytes of the file (bits per weight)")
    print(format_table(rows))


if __name__ == "__main__":
    main()
