"""The package's compiled libraries: found beside the code, and compiled from the sources there."""

from __future__ import annotations

import ctypes
import importlib.machinery
import zlib
from pathlib import Path
from typing import Iterable, List


def load_compiled(folder: Path, name: str, sources: Iterable[Path], version: str) -> ctypes.CDLL:
    """Load a library of C++.

    Args:
        folder: Where setup.py puts it.
        name: Of its file, without the ending.
        sources: What it has to be compiled from, in their order.
        version: Its function that returns their checksum.

    Raises:
        FileNotFoundError: It was not compiled.
        OSError: It was compiled from other sources, or does not load.
    """
    found = [folder / f"{name}{ending}" for ending in importlib.machinery.EXTENSION_SUFFIXES]
    found = [path for path in found if path.is_file()]
    if not found:
        raise FileNotFoundError(f"{name} was not compiled")
    loaded = ctypes.CDLL(str(found[0]))
    if getattr(loaded, version)() != checksum(sources):
        raise OSError(
            "compiled from other sources: install nnabla_dqa again, with a C++ compiler (g++ or "
            "clang++)"
        )
    return loaded


def sources_in(folder: Path) -> List[Path]:
    """The C++ files of a folder, in the order of their names; setup.py has the same list."""
    return sorted(path for path in folder.iterdir() if path.suffix in (".cpp", ".h"))


def checksum(paths: Iterable[Path]) -> int:
    """Of some files together; setup.py compiles it in."""
    total = 0
    for path in paths:
        total = zlib.crc32(path.read_bytes(), total)
    return total & 0x7FFFFFFF
