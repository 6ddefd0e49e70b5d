"""What other compressions of an .nnp's float32 weights would take, in bits a weight.

    python benchmarks/nnp_compression.py     # zopfli too, if that package is installed: minutes

Normally distributed weights. Beside the entropy of their codes: zlib as deployed files use it;
zopfli, a slow deflater whose files every reader of zip opens; bzip2 and LZMA, which zip knows too,
but NNabla's C++ library is built without; and codes packed into whole numbers below 2^24, stored
as float32 and deflated, which a network would have to unpack in every run.
"""

from __future__ import annotations

import bz2
import importlib
import lzma
import zlib
from typing import Callable, Dict

import numpy as np

import nnabla_dqa as dqa
from nnabla_dqa._util.tables import format_table

QUANTIZERS = (dqa.BWN(), dqa.TWN(), dqa.MinMax(2), dqa.SAWB(2), dqa.MinMax(4))
WEIGHTS = 64 * 64 * 9 * 4


def main() -> None:
    compressions: Dict[str, Callable[[bytes], bytes]] = {
        "zlib": lambda data: zlib.compress(data, 9),
        "bzip2": bz2.compress,
        "LZMA": lzma.compress,
    }
    try:
        compressions["zopfli"] = importlib.import_module("zopfli.zlib").compress
    except ImportError:
        print("zopfli is not installed")
    w = np.random.RandomState(0).randn(WEIGHTS, 1).astype(np.float32)
    rows = [("weights", "entropy", *compressions, "packed, zlib")]
    for quantizer in QUANTIZERS:
        encoded = quantizer.encode(w)
        codes = encoded.codes.ravel().astype(np.int64)
        shares = np.bincount(codes) / codes.size
        entropy = float(-np.sum(shares * np.log2(np.maximum(shares, 1e-30))))
        data = encoded.decode().astype("<f4").tobytes()
        sizes = [len(compress(data)) for compress in compressions.values()]
        sizes.append(len(compressions["zlib"](packed(codes, quantizer.levels))))
        bits = [f"{8 * size / WEIGHTS:.2f}" for size in sizes]
        rows.append((str(quantizer), f"{entropy:.2f}", *bits))
    print(format_table(rows))


def packed(codes: np.ndarray, levels: int) -> bytes:
    """As many codes as a whole number below 2^24 holds, as float32."""
    count = int(24 / np.log2(levels))
    padded = np.zeros(-(-codes.size // count) * count, np.int64)
    padded[: codes.size] = codes
    return (padded.reshape(-1, count) @ levels ** np.arange(count)).astype("<f4").tobytes()


if __name__ == "__main__":
    main()
