"""The compiled layers (``cpp/``) and oneDNN, which they load when they are first used."""

from __future__ import annotations

import ctypes
import functools
import importlib.metadata
import sys
from pathlib import Path
from typing import Any, List, Optional, Tuple

from nnabla_dqa.backends import cpu
from nnabla_dqa.backends.compiled import load_compiled, sources_in

_FOLDER = Path(__file__).resolve().parent
PACKAGE = "onednn-cpu-gomp"
"""The wheel that has oneDNN; the extra ``onednn`` installs it."""

_ERROR_SIZE = 512


class OneDnnError(RuntimeError):
    """oneDNN was asked for by name and cannot be used, or failed."""


@functools.cache
def why_not() -> str:
    """Why oneDNN cannot be used here, in one line; empty if it can."""
    if sys.platform != "linux":
        return "its layers are compiled on Linux alone"
    if cpu.why_not():
        # The mixtures are computed by those kernels.
        return f"the mixture's {cpu.why_not()}"
    try:
        library()
    except OSError as error:
        return str(error)
    return ""


def describe() -> str:
    """What is used, in a few words, for example ``"oneDNN 3.2.0, 2 threads"``."""
    numbers = (ctypes.c_int * 3)()
    library().layers_version(numbers)
    return f"oneDNN {'.'.join(map(str, numbers))}, {cpu.threads()} threads"


@functools.cache
def library() -> ctypes.CDLL:
    """The compiled layers with oneDNN loaded.

    Raises:
        OSError: One of them is missing or does not fit, and what would help.
    """
    try:
        loaded = load_compiled(_FOLDER, "_layers", sources_in(_FOLDER / "cpp"), "layers_sources")
    except FileNotFoundError:
        raise OSError(
            "the layers for oneDNN were not compiled: install a C++ compiler (g++ or clang++) and "
            "the headers, onednn-devel-cpu-gomp, then nnabla_dqa again"
        ) from None
    except OSError as error:
        raise OSError(f"the layers for oneDNN were {error}") from None
    path = onednn_path()
    if path is None:
        raise OSError(f"oneDNN is not installed: pip install 'nnabla_dqa[onednn]' ({PACKAGE})")
    _declare(loaded)
    text, size = error_buffer()
    if loaded.layers_load(str(path).encode(), text, size):
        raise OSError(f"oneDNN in {path} cannot be used: {text.value.decode()}")
    mixtures = cpu.library()
    loaded.layers_set_mixture(
        ctypes.cast(mixtures.dqa_forward, ctypes.c_void_p),
        ctypes.cast(mixtures.dqa_backward, ctypes.c_void_p),
    )
    steps = (mixtures.dqa_activate, mixtures.dqa_activate_again, mixtures.dqa_activate_back)
    loaded.layers_set_activations(*[ctypes.cast(step, ctypes.c_void_p) for step in steps])
    return loaded


def onednn_path() -> Optional[Path]:
    """Where the wheel :data:`PACKAGE` has put the library, None without it."""
    try:
        files = importlib.metadata.files(PACKAGE) or []
    except importlib.metadata.PackageNotFoundError:
        return None
    paths = [Path(str(file.locate())) for file in files if file.name.startswith("libdnnl.so")]
    existing = sorted((path for path in paths if path.is_file()), key=lambda path: len(path.name))
    return existing[-1].resolve() if existing else None


def error_buffer() -> Tuple[ctypes.Array, int]:
    """Where the library writes what went wrong, and its size."""
    return ctypes.create_string_buffer(_ERROR_SIZE), _ERROR_SIZE


def _declare(loaded: ctypes.CDLL) -> None:
    pointer, number, size = ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t
    error: List[Any] = [ctypes.c_char_p, size]
    loaded.layers_load.argtypes = [ctypes.c_char_p, *error]
    loaded.layers_set_mixture.argtypes = [pointer, pointer]
    loaded.layers_set_activations.argtypes = [pointer] * 3
    loaded.layers_create.argtypes = [pointer, number, pointer, number, number, number, *error]
    loaded.layers_create.restype = pointer
    loaded.layers_destroy.argtypes = [pointer]
    loaded.layers_bytes.argtypes = [pointer]
    loaded.layers_bytes.restype = ctypes.c_int64
    loaded.layers_forward.argtypes = [pointer, pointer, number, pointer, *error]
    loaded.layers_backward.argtypes = [*[pointer] * 4, *error]
