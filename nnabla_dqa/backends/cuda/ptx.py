"""The compiled CUDA kernels as a file: ``kernels/mixture.ptx``, and whether it is up to date.

PTX is what a GPU's driver compiles when it is loaded; the driver keeps the
result in its cache. The file serves

* drivers from CUDA 11.0 on (450 on Linux): those of nnabla-ext-cuda110, 116
  and 120;
* GPUs of compute capability 5.2 and above.

``scripts/compile_cuda.py`` makes it. This module imports nothing of the
package, so that the script runs where NNabla is not installed.
"""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from typing import List, Mapping

FOLDER = Path(__file__).resolve().parent.parent / "kernels"
SOURCES = (
    "mixture.cu",
    "activations.cuh",
    "clip_search.cuh",
    "layer.cuh",
    "activation_grid.h",
    "attention.h",
    "grid.h",
)
VERSION = (7, 0)
"""Of the PTX: CUDA 11.0."""
DRIVER = 11000
"""The oldest driver that takes it, as ``cuDriverGetVersion`` counts."""
CAPABILITY = (5, 2)
"""Of the oldest GPU."""


def checksum(texts: Mapping[str, str]) -> str:
    """Of the sources' texts by their names, in the order of :data:`SOURCES`."""
    total = hashlib.sha256()
    for name in SOURCES:
        # Git may write other line ends.
        total.update("\n".join(texts[name].splitlines()).encode() + b"\0")
    return total.hexdigest()


def marked(ptx: str, texts: Mapping[str, str]) -> str:
    """A compiler's PTX with the sources' checksum and :data:`VERSION`.

    Raises:
        ValueError: It is no PTX.
    """
    body, found = re.subn(
        r"^\.version [0-9.]+$", f".version {VERSION[0]}.{VERSION[1]}", ptx, flags=re.M
    )
    if found != 1:
        raise ValueError("the compiler's PTX has no line .version")
    return f"// made by scripts/compile_cuda.py of sources {checksum(texts)}\n{body}"


def read() -> str:
    """The committed PTX.

    Raises:
        OSError: It is missing, or made of other sources.
    """
    ptx = (FOLDER / "mixture.ptx").read_text("utf-8")
    texts = {name: (FOLDER / name).read_text("utf-8") for name in SOURCES}
    if f" {checksum(texts)}" not in ptx.partition("\n")[0]:
        raise OSError("kernels/mixture.ptx was made of other sources: scripts/compile_cuda.py")
    return ptx


def kernels(ptx: str) -> List[str]:
    """Names of the kernels in a PTX."""
    return re.findall(r"\.entry (\w+)\(", ptx)
