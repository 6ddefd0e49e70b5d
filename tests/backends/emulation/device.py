"""The CUDA kernels on the CPU: the same source, the same launches, emulated threads."""

from __future__ import annotations

import ctypes
import functools
import shutil
import subprocess
import tempfile
from pathlib import Path

import numpy as np
import pytest

from nnabla_dqa.backends.cuda import ptx as cuda_ptx

HERE = Path(__file__).resolve().parent
FLAGS = "-O1 -std=c++17 -shared -fPIC -ffp-contract=off -Wno-unknown-pragmas -Wall -Werror"
GUARD = 0xA5


@functools.cache
def library():
    """The kernels, compiled once a session; skips the test where that cannot be."""
    compiler = shutil.which("g++")
    if compiler is None:
        pytest.skip("no g++ to compile the CUDA kernels for the CPU")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "mixture.so"
        sources = [f"-I{HERE}", f"-I{cuda_ptx.FOLDER}", str(HERE / "fake_driver.cpp")]
        subprocess.run([compiler, *FLAGS.split(), *sources, "-o", str(path)], check=True)
        loaded = ctypes.CDLL(str(path))
    loaded.launch.argtypes = [ctypes.c_char_p, *[ctypes.c_uint32] * 3, *[ctypes.c_void_p]]
    loaded.launch.argtypes += [ctypes.c_uint32]
    for function in (loaded.size_of, loaded.offset_of, loaded.activation_offset_of):
        function.argtypes = [ctypes.c_char_p]
        function.restype = ctypes.c_size_t
    return loaded


class OnCpu:
    """A :class:`nnabla_dqa.backends.cuda.launch.Device` with guarded memory at an odd address."""

    def __init__(self, seed=0):
        self.launched = []
        self._seed = seed
        self._library = library()
        self.reserve(0)

    def reserve(self, size):
        self.size = size
        self._memory = np.zeros(size + 8, np.uint8)
        self._memory[:4] = self._memory[4 + size :] = GUARD

    def address(self):
        return self._memory.ctypes.data + 4

    def launch(self, name, blocks, threads, shared, params):
        self.launched.append(name)
        self._seed += 1
        address = ctypes.addressof(params)
        failed = self._library.launch(
            name.encode(), blocks, threads, shared, address, self._seed % 2**32
        )
        assert not failed, name
        assert (self._memory[:4] == GUARD).all()
        assert (self._memory[4 + self.size :] == GUARD).all()

    def read(self, plan, name, dtype, shape):
        """A copy of a scratch array."""
        offset = getattr(plan.params, name) - self._memory.ctypes.data
        count = int(np.prod(shape)) * np.dtype(dtype).itemsize
        return self._memory[offset : offset + count].copy().view(dtype).reshape(shape)
