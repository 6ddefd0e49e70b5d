"""Kernels launched by way of CUDA's driver, which every machine with a GPU has.

No toolkit, no compiler and no other package is needed: ``libcuda`` compiles
the PTX when it is loaded.

Context and stream are those of NNabla. Its functions run in the primary
context of the device that their context names (``cudaSetDevice``), and on the
legacy default stream: it is compiled without ``--default-stream per-thread``
(``src/nbla/cuda/CMakeLists.txt`` of nnabla-ext-cuda 1.39 says why), and the
``libnnabla_cuda`` of its wheel imports ``cudaLaunchKernel``, not
``cudaLaunchKernel_ptsz``. cuDNN's convolution computes one of its gradients on
a stream of its own, for which the default stream waits at the end
(``cudnn/function/generic/convolution.cu``). Stream 0 of ``cuLaunchKernel`` is
the default stream. So what is launched here comes after everything NNabla
started before it and before everything it starts next, and nothing has to
wait for the GPU. The context that the thread had is put back after every call.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import sys
from typing import Any, Iterator

from nnabla_dqa.backends.cuda import ptx

ADVICE = "NNABLA_DQA_BACKEND=portable computes without these kernels"

_CAPABILITY_MAJOR, _CAPABILITY_MINOR = 75, 76
_JIT_ERROR_LOG, _JIT_ERROR_LOG_SIZE = 5, 6
_LOG_SIZE = 4096
_DEFAULT_STREAM = None

_FUNCTIONS = {
    "cuInit": [ctypes.c_uint],
    "cuDriverGetVersion": [ctypes.c_void_p],
    "cuDeviceGetCount": [ctypes.c_void_p],
    "cuDeviceGet": [ctypes.c_void_p, ctypes.c_int],
    "cuDeviceGetAttribute": [ctypes.c_void_p, ctypes.c_int, ctypes.c_int],
    "cuDevicePrimaryCtxRetain": [ctypes.c_void_p, ctypes.c_int],
    "cuCtxPushCurrent_v2": [ctypes.c_void_p],
    "cuCtxPopCurrent_v2": [ctypes.c_void_p],
    "cuModuleLoadDataEx": [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_uint, *[ctypes.c_void_p] * 2],
    "cuModuleGetFunction": [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_char_p],
    "cuLaunchKernel": [ctypes.c_void_p, *[ctypes.c_uint] * 7, *[ctypes.c_void_p] * 3],
    "cuGetErrorName": [ctypes.c_int, ctypes.c_void_p],
    "cuGetErrorString": [ctypes.c_int, ctypes.c_void_p],
}


class CudaError(RuntimeError):
    """CUDA refused a call; the message names it, what CUDA says and what can be done."""


class Module:
    """The kernels on one GPU.

    Args:
        device: Its number, as in the ``device_id`` of NNabla's contexts.

    Raises:
        CudaError: There is no such GPU, or it cannot run them.
        OSError: There is no driver, or the PTX is missing or out of date.
    """

    def __init__(self, device: int) -> None:
        self._where = f"GPU {device}"
        self._context = ctypes.c_void_p()
        number = ctypes.c_int()
        call("cuInit", 0)
        call("cuDeviceGet", ctypes.byref(number), device, what=self._where)
        call("cuDevicePrimaryCtxRetain", ctypes.byref(self._context), number, what=self._where)
        code = ptx.read()
        with self._current():
            loaded = _load(code, self._where)
            self._functions = {name: _function(loaded, name) for name in ptx.kernels(code)}

    def launch(
        self, name: str, blocks: int, threads: int, shared: int, params: ctypes.Structure
    ) -> None:
        """Start a kernel whose only argument is ``params``; it is copied, nothing is waited for.

        Args:
            name: Of the kernel.
            blocks: How many.
            threads: Of each block.
            shared: Bytes of dynamic shared memory of each block.
            params: The argument.

        Raises:
            CudaError: It could not be started, or an earlier one failed.
        """
        arguments = (ctypes.c_void_p * 1)(ctypes.addressof(params))
        with self._current():
            function = self._functions[name]
            sizes = (blocks, 1, 1, threads, 1, 1, shared)
            what = f"{name} on {self._where}"
            call("cuLaunchKernel", function, *sizes, _DEFAULT_STREAM, arguments, None, what=what)

    @contextlib.contextmanager
    def _current(self) -> Iterator[None]:
        call("cuCtxPushCurrent_v2", self._context, what=self._where)
        try:
            yield
        finally:
            call("cuCtxPopCurrent_v2", ctypes.byref(ctypes.c_void_p()), what=self._where)


@functools.cache
def module(device: int) -> Module:
    """The kernels on a GPU, loaded once; see :class:`Module`."""
    return Module(device)


@functools.cache
def library() -> ctypes.CDLL:
    """CUDA's driver.

    Raises:
        OSError: There is none, or it is older than the functions used here.
    """
    try:
        return declared(ctypes.CDLL("libcuda.so.1"))
    except (OSError, AttributeError) as error:
        raise OSError(f"NVIDIA's driver is missing or too old: {error}") from None


def declared(driver: ctypes.CDLL) -> ctypes.CDLL:
    """A driver whose functions know the types of their arguments.

    Raises:
        AttributeError: One of them is missing.
    """
    for name, arguments in _FUNCTIONS.items():
        getattr(driver, name).argtypes = arguments
        getattr(driver, name).restype = ctypes.c_int
    return driver


def call(name: str, *arguments: Any, what: str = "") -> None:
    """Call a function of the driver.

    Args:
        name: Of the function.
        arguments: Its arguments.
        what: What it is about, for the message.

    Raises:
        CudaError: It returns an error.
        OSError: There is no driver.
    """
    code = getattr(library(), name)(*arguments)
    if code:
        raise CudaError(f"{name}{f' ({what})' if what else ''}: {described(code)}; {ADVICE}")


def described(code: int) -> str:
    """An error of the driver by its name and in words."""
    texts = []
    for function in ("cuGetErrorName", "cuGetErrorString"):
        text = ctypes.c_char_p()
        getattr(library(), function)(code, ctypes.byref(text))
        texts.append((text.value or b"").decode("utf-8", "replace"))
    return f"{texts[0] or 'error'} ({code}), {texts[1] or 'unknown'}"


def why_not() -> str:
    """Why the kernels cannot be loaded, in one line; empty if they can.

    Makes no context and loads nothing, so that no memory of a GPU is taken by
    asking.
    """
    if sys.platform == "win32":
        return "on Windows NNabla cuts the addresses of its arrays to 32 bits"
    number = ctypes.c_int()
    try:
        ptx.read()
        call("cuInit", 0)
        call("cuDriverGetVersion", ctypes.byref(number))
        if number.value < ptx.DRIVER:
            oldest = f"{ptx.DRIVER // 1000}.{ptx.DRIVER % 1000 // 10}"
            return f"the driver is older than CUDA {oldest}: install a newer one"
        call("cuDeviceGetCount", ctypes.byref(number))
        capable = [_capability(device) >= ptx.CAPABILITY for device in range(number.value)]
    except (OSError, CudaError) as error:
        return str(error)
    if not any(capable):
        return "no GPU of compute capability {}.{} or above".format(*ptx.CAPABILITY)
    return ""


def _capability(device: int) -> tuple[int, int]:
    handle, major, minor = ctypes.c_int(), ctypes.c_int(), ctypes.c_int()
    call("cuDeviceGet", ctypes.byref(handle), device)
    call("cuDeviceGetAttribute", ctypes.byref(major), _CAPABILITY_MAJOR, handle)
    call("cuDeviceGetAttribute", ctypes.byref(minor), _CAPABILITY_MINOR, handle)
    return major.value, minor.value


def _load(ptx: str, where: str) -> ctypes.c_void_p:
    loaded = ctypes.c_void_p()
    log = ctypes.create_string_buffer(_LOG_SIZE)
    options = (ctypes.c_int * 2)(_JIT_ERROR_LOG, _JIT_ERROR_LOG_SIZE)
    values = (ctypes.c_void_p * 2)(ctypes.addressof(log), _LOG_SIZE)
    arguments = (ctypes.byref(loaded), ptx.encode(), len(options), options, values)
    try:
        call("cuModuleLoadDataEx", *arguments, what=f"kernels/mixture.ptx on {where}")
    except CudaError as error:
        said = " ".join(log.value.decode("utf-8", "replace").split())
        raise CudaError(f"{error}; the driver says: {said or 'nothing'}") from None
    return loaded


def _function(loaded: ctypes.c_void_p, name: str) -> ctypes.c_void_p:
    found = ctypes.c_void_p()
    call("cuModuleGetFunction", ctypes.byref(found), loaded, name.encode(), what=name)
    return found
