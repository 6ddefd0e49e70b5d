"""A list of layers and the tensors between them, as ``cpp/program.h`` takes it."""

from __future__ import annotations

import ctypes
import enum
from typing import Any, Dict, List, NamedTuple, Optional, Sequence

from nnabla_dqa.backends.cpu import threads
from nnabla_dqa.onednn.library import OneDnnError, error_buffer, library

MAX_INPUTS = 32
_MAX_OUTPUTS, _NUMBERS = 2, 32


class Kind(enum.IntEnum):
    """The kinds of layers; the C++ sources have the same numbers."""

    CONVOLUTION = 1
    DECONVOLUTION = 2
    AFFINE = 3
    NORMALIZATION = 4
    MAX_POOLING = 5
    AVERAGE_POOLING = 6
    UNARY = 7
    ADD = 8
    CHANNELS_LAST = 9
    CHANNELS_FIRST = 10
    COPY = 11
    PAD_CHANNELS = 12
    MIXTURE = 13
    ACTIVATIONS = 14


class _TensorSpec(ctypes.Structure):
    _fields_ = [
        *[(name, ctypes.c_int64) for name in ("samples", "positions", "channels")],
        *[(name, ctypes.c_int32) for name in ("external", "wanted", "whole")],
        ("offset", ctypes.c_int64),
    ]


class _LayerSpec(ctypes.Structure):
    _fields_ = [
        ("kind", ctypes.c_int32),
        ("inputs", ctypes.c_int32 * MAX_INPUTS),
        ("outputs", ctypes.c_int32 * _MAX_OUTPUTS),
        ("numbers", ctypes.c_int64 * _NUMBERS),
        ("reals", ctypes.c_double * 4),
        ("pointers", ctypes.c_void_p * 4),
    ]


class Dims(NamedTuple):
    """A tensor's memory: samples first, channels last."""

    samples: int
    positions: int
    channels: int

    @property
    def size(self) -> int:
        """How many numbers it has."""
        return self.samples * self.positions * self.channels


class Plan:
    """Tensors and layers that become a :class:`Program`."""

    def __init__(self) -> None:
        self.tensors: List[_TensorSpec] = []
        self.layers: List[_LayerSpec] = []
        self.kept_alive: List[Any] = []

    def tensor(
        self, dims: Dims, wanted: bool, whole: int = -1, offset: int = 0, external: int = -1
    ) -> int:
        """A new tensor.

        Args:
            dims: Of its memory.
            wanted: Whether its gradient is.
            whole: A tensor that it is a part of, or another view of.
            offset: Where it begins in that one.
            external: Its place among the arrays that a call is given, -1 for memory of the
                program's own.
        """
        self.tensors.append(_TensorSpec(*dims, external, wanted, whole, offset))
        return len(self.tensors) - 1

    def dims(self, tensor: int) -> Dims:
        """Of a tensor's memory."""
        spec = self.tensors[tensor]
        return Dims(spec.samples, spec.positions, spec.channels)

    def wanted(self, tensor: int) -> bool:
        """Whether the gradient of a tensor is."""
        return bool(self.tensors[tensor].wanted)

    def layer(
        self,
        kind: Kind,
        inputs: Sequence[Optional[int]],
        outputs: Sequence[int],
        numbers: Optional[Dict[int, Sequence[int]]] = None,
        reals: Sequence[float] = (),
        pointers: Sequence[Any] = (),
    ) -> None:
        """Append a layer.

        Args:
            kind: What it computes.
            inputs: Tensors, None where it has none.
            outputs: Tensors.
            numbers: By the place of the first: the layer's numbers, as its C++ source has them.
            reals: Likewise.
            pointers: ctypes objects; they are kept alive.
        """
        spec = _LayerSpec(kind=kind)
        spec.inputs[:] = _padded([-1 if i is None else i for i in inputs], MAX_INPUTS)
        spec.outputs[:] = _padded(list(outputs), _MAX_OUTPUTS)
        for at, values in (numbers or {}).items():
            for i, value in enumerate(values):
                spec.numbers[at + i] = int(value)
        for i, real in enumerate(reals):
            spec.reals[i] = real
        for i, pointer in enumerate(pointers):
            spec.pointers[i] = ctypes.addressof(pointer) if pointer is not None else None
        self.kept_alive += pointers
        self.layers.append(spec)


def _padded(values: List[int], size: int) -> List[int]:
    return values + [-1] * (size - len(values))


class Program:
    """What computes a plan.

    Args:
        plan: The tensors and layers.
        trains: Whether :meth:`backward` will be called.

    Raises:
        OneDnnError: oneDNN does not compute one of the layers.
    """

    def __init__(self, plan: Plan, trains: bool) -> None:
        self._library = library()
        self._plan = plan
        error, size = error_buffer()
        tensors = (_TensorSpec * len(plan.tensors))(*plan.tensors)
        layers = (_LayerSpec * len(plan.layers))(*plan.layers)
        self._handle = self._library.layers_create(
            tensors, len(tensors), layers, len(layers), threads(), trains, error, size
        )
        if not self._handle:
            raise OneDnnError(error.value.decode())
        self._error, self._size = error, size
        self._finite = ctypes.c_int()
        self._finite_at = ctypes.addressof(self._finite)

    def __del__(self) -> None:
        if getattr(self, "_handle", None):
            self._library.layers_destroy(self._handle)

    @property
    def bytes(self) -> int:
        """Memory of the tensors between the layers."""
        return int(self._library.layers_bytes(self._handle))

    def forward(self, arrays: ctypes.Array, moves_statistics: bool = True) -> bool:
        """Compute the outputs.

        Args:
            arrays: The address of each external tensor.
            moves_statistics: Whether running statistics move on.

        Returns:
            Whether the weights of all mixtures, and what their coefficients are made of, are
            finite.

        Raises:
            OneDnnError: Memory ran out, or oneDNN failed.
        """
        if self._library.layers_forward(
            self._handle, arrays, moves_statistics, self._finite_at, self._error, self._size
        ):
            raise OneDnnError(self._error.value.decode())
        return bool(self._finite.value)

    def backward(self, arrays: ctypes.Array, grads: ctypes.Array, add: ctypes.Array) -> None:
        """Compute the gradients, once after each :meth:`forward`.

        Args:
            arrays: As there.
            grads: The address of each external tensor's gradient, None where it is not wanted.
            add: Whether it is added to what is there.

        Raises:
            OneDnnError: Memory ran out, or oneDNN failed.
        """
        if self._library.layers_backward(self._handle, arrays, grads, add, self._error, self._size):
            raise OneDnnError(self._error.value.decode())


def computes(plan: Plan, trains: bool) -> str:
    """Why oneDNN does not compute the layers of ``plan``, empty if it does."""
    try:
        Program(plan, trains)
    except OneDnnError as error:
        return str(error)
    return ""
