"""What other compressions of an .nnp's float32 weights would take, in bits a weight.

    python benchmarks/nnp_compression.py     # zopfli too, if that package is installed: minutes

Normally distributed weights. Beside the entropy of their codes: zlib as deployed files use it;
zopfli, a slow deflater whose files every reader of zip opens; bzip2 and LZMA, which zip knows too,
but NNabla's C++ library is built without; and codes packed into float32 numbers and deflated, which
the network has to unpack in every run: into whole numbers below 2^24, into whole numbers below
2^23 and 2^22 to which 2^23 is added (one exponent for all), and into mantissa, exponent and sign,
as ``nnabla-dqa export`` writes .nnp files.
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
from nnabla_dqa.export.packed.choose import deflated
from nnabla_dqa.export.packed.codes import Form, pack

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
    packings = ("24 bits", "23 bits", "22 bits", "all bits")
    rows = [("weights", "entropy", *compressions, *packings)]
    for quantizer in QUANTIZERS:
        encoded = quantizer.encode(w)
        codes = encoded.codes.ravel().astype(np.int64)
        shares = np.bincount(codes) / codes.size
        entropy = float(-np.sum(shares * np.log2(np.maximum(shares, 1e-30))))
        data = encoded.decode().astype("<f4").tobytes()
        sizes = [len(compress(data)) for compress in compressions.values()]
        forms = ((24, 0), (23, 1), (22, 1))
        numbers = [whole_numbers(codes, quantizer.levels, *form) for form in forms]
        sizes += [deflated(n) for n in numbers]
        sizes.append(min(deflated(pack(codes, form)) for form in Form.all_of(quantizer.levels)))
        bits = [f"{8 * size / WEIGHTS:.2f}" for size in sizes]
        rows.append((str(quantizer), f"{entropy:.2f}", *bits))
    print(format_table(rows))


def whole_numbers(codes: np.ndarray, levels: int, bits: int, raised: int) -> np.ndarray:
    """As many codes as a whole number of so many bits holds, plus ``raised * 2^23``."""
    count = int(bits / np.log2(levels))
    padded = np.zeros(-(-codes.size // count) * count, np.int64)
    padded[: codes.size] = codes
    numbers: np.ndarray = padded.reshape(-1, count) @ levels ** np.arange(count) + raised * 2**23
    return numbers


if __name__ == "__main__":
    main()
