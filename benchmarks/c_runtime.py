"""NNabla's C runtime, compiled from its sources and called by ctypes.

The sources are at https://github.com/sony/nnabla-c-runtime; they are no part of this repository.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any, List, Optional

import numpy as np

VARIABLE = "NNABLA_C_RUNTIME"
"""The environment variable that names a clone of the sources."""


def sources() -> Optional[Path]:
    """The clone that the environment names, if it is one."""
    folder = os.environ.get(VARIABLE)
    found = None if folder is None else Path(folder)
    return found if found and (found / "include" / "nnablart" / "runtime.h").exists() else None


def compiler() -> Optional[str]:
    """A C compiler."""
    return next((name for name in ("cc", "gcc", "clang") if shutil.which(name)), None)


def flags(folder: Path) -> List[str]:
    """What a program needs to find the runtime's headers."""
    return [f"-I{folder / part}" for part in ("include", "src", "src/functions/utilities")]


def parts(folder: Path) -> List[str]:
    """The C files of the runtime."""
    found = [*(folder / "src" / "runtime").glob("*.c"), *(folder / "src/functions").rglob("*.c")]
    return sorted(str(path) for path in found)


def compiled(folder: Path, target: Path) -> Path:
    """The runtime as a shared library."""
    command = [compiler() or "cc", "-O2", "-w", "-shared", "-fPIC", *flags(folder)]
    subprocess.run([*command, *parts(folder), "-o", str(target), "-lm"], check=True)
    return target


class CRuntime:
    """A network in the C runtime.

    Args:
        library: Of :func:`compiled`.
        path: An NNB file.
    """

    def __init__(self, library: Path, path: Path) -> None:
        self._calls: Any = ctypes.CDLL(str(library))
        for name in ("rt_input_buffer", "rt_output_buffer"):
            getattr(self._calls, name).restype = ctypes.c_void_p
        for name in ("input_size", "output_size", "input_buffer", "output_buffer"):
            getattr(self._calls, f"rt_{name}").argtypes = [ctypes.c_void_p, ctypes.c_size_t]
        self._calls.rt_initialize_context.argtypes = [ctypes.c_void_p, ctypes.c_void_p]
        self._calls.rt_forward.argtypes = [ctypes.c_void_p]
        # The network lies in here as long as it is used.
        self._data = ctypes.create_string_buffer(path.read_bytes())
        self._context = ctypes.c_void_p()
        self._check(self._calls.rt_allocate_context(ctypes.byref(self._context)))
        self._check(self._calls.rt_initialize_context(self._context, self._data))

    def __call__(self, *inputs: np.ndarray) -> np.ndarray:
        """The first output for one batch."""
        for i, x in enumerate(inputs):
            x = np.ascontiguousarray(x, np.float32)
            if self._calls.rt_input_size(self._context, i) != x.size:
                raise ValueError(f"input {i} has {x.size} numbers")
            ctypes.memmove(self._calls.rt_input_buffer(self._context, i), x.ctypes.data, x.nbytes)
        self._check(self._calls.rt_forward(self._context))
        y = np.empty(self._calls.rt_output_size(self._context, 0), np.float32)
        ctypes.memmove(y.ctypes.data, self._calls.rt_output_buffer(self._context, 0), y.nbytes)
        return y

    def _check(self, code: int) -> None:
        if code:
            raise RuntimeError(f"the C runtime returned {code}")
