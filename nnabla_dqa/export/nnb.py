"""Deployed networks as NNB files for NNabla's C runtime, layers of two levels as packed signs.

A layer whose weights are ``+a`` and ``-a`` (for each output, or for all) becomes the runtime's
BinaryWeightAffine or BinaryWeightConvolution: its signs take a bit each, ``a`` is a factor of the
output. Everything else is float32. The file is put together by NNabla's own exporter.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import tempfile
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Dict, List, Optional, Sequence, Tuple

import numpy as np
from nnabla.utils import nnabla_pb2

from nnabla_dqa._util.files import PathLike, write_atomically
from nnabla_dqa._util.tables import format_table
from nnabla_dqa.export.deployed import Deployed
from nnabla_dqa.export.errors import ExportError, check_ending, check_finite
from nnabla_dqa.export.network import Call, Network
from nnabla_dqa.export.nnb_functions import RuntimeCall, for_runtime
from nnabla_dqa.export.tensor import DeployedTensor

SUFFIX = ".nnb"
API_LEVEL = 44
"""The headers of the published C runtime refuse 45, which NNabla 1.39 would write."""
_BINARY = {"Affine": "BinaryWeightAffine", "Convolution": "BinaryWeightConvolution"}
_WORD = 32


@dataclasses.dataclass(frozen=True)
class NnbFile:
    """An NNB file that was written; ``str()`` of it is a table of its layers.

    Attributes:
        path: The file.
        file_bytes: Its size.
        network: What of the deployed network is in it.
        signs: The bytes of the packed signs, by the name of the parameter.
        weights: The float32 bytes of all weights that are quantized, by name.
        messages: What a user should know, a line each.
    """

    path: Path
    file_bytes: int
    network: Network = dataclasses.field(repr=False)
    signs: Dict[str, int]
    weights: Dict[str, int]
    messages: Tuple[str, ...] = ()

    def __str__(self) -> str:
        rows: List[Tuple[str, ...]] = [("weights", "float32 bytes", "bytes")]
        for name, size in self.weights.items():
            rows.append((name, f"{size:,}", f"{self.signs.get(name, size):,}"))
        return f"{format_table(rows)}\n{self.path}: {self.file_bytes:,} bytes"


def write_nnb(
    deployed: Deployed, path: PathLike, network: Optional[str] = None, batch_size: int = 1
) -> NnbFile:
    """Write a deployed network as NNB, atomically.

    Args:
        deployed: As of :func:`nnabla_dqa.export.onnx.write.write_onnx`.
        path: Ends in ``.nnb``; replaced if it exists.
        network: Which network; default: that of the first executor.
        batch_size: The batch that is built into the file.

    Raises:
        ExportError: ``path`` does not end in ``.nnb``, the C runtime has no such
            function or computes something else (names it), or a parameter holds NaN or
            infinity.
        OSError: The file cannot be written.
    """
    target = check_ending(path, SUFFIX)
    run = Network.of(deployed, network, batch_size)
    calls = [for_runtime(run, call) for call in run.calls]
    for name, array in run.arrays.items():
        check_finite(name, array)
    draft = _Draft(run, deployed, calls)
    data = draft.exported(batch_size)
    write_atomically(target, data)
    sizes = {n: run.arrays[n].nbytes for n in deployed.tensors if n in run.arrays}
    stays = [name for name in sizes if name not in draft.signs]
    messages = (
        (f"stored as float32, not of two opposite levels: {', '.join(stays)}",) if stays else ()
    )
    return NnbFile(target, len(data), run, draft.signs, sizes, messages)


class _Draft:
    """NNabla's definition of the network as the C runtime shall run it."""

    def __init__(self, run: Network, deployed: Deployed, calls: Sequence[RuntimeCall]) -> None:
        self.signs: Dict[str, int] = {}
        self._run, self._deployed = run, deployed
        self._definition = nnabla_pb2.NNablaProtoBuf()
        self._network = self._definition.network.add(name=run.name)
        self._types: Dict[str, str] = {}
        for call, made in zip(run.calls, calls):
            self._add(call, made)
        executor = self._definition.executor.add(name="runtime", network_name=run.name)
        for name in run.inputs:
            self._declare(name)
            executor.data_variable.add(variable_name=name, data_name=name)
        for name in run.outputs:
            executor.output_variable.add(variable_name=name, data_name=name)

    def exported(self, batch_size: int) -> bytes:
        """The bytes of the file, by NNabla's exporter."""
        import yaml
        from nnabla.utils.converter.nnablart.nnb import NnbExporter

        self._network.batch_size = batch_size
        nnp = SimpleNamespace(protobuf=self._definition, other_files=[])
        quiet = contextlib.redirect_stdout(io.StringIO())
        with tempfile.TemporaryDirectory() as folder, quiet, warnings.catch_warnings():
            # The exporter leaves closing its settings to the interpreter.
            warnings.simplefilter("ignore", ResourceWarning)
            settings, written = Path(folder) / "settings.yaml", Path(folder) / "net.nnb"
            settings.write_text(yaml.safe_dump({"variables": self._types}))
            try:
                exporter = NnbExporter(nnp, batch_size, api_level=API_LEVEL)
                exporter.execute(str(written), None, [str(settings)], ["FLOAT32"])
            except ValueError as error:
                raise ExportError(f"network {self._run.name}: {error}") from None
            return written.read_bytes()

    def _add(self, call: Call, made: RuntimeCall) -> None:
        from nnabla.utils.save_function import _create_function_nntxt

        arguments, inputs, kind = made.arguments, made.inputs, made.type
        for name, array in made.arrays.items():
            if name not in self._types:
                self._store(name, array, array.shape)
        tensor = self._deployed.tensors.get(inputs[1]) if kind in _BINARY else None
        level = None if tensor is None else opposite_levels(tensor, kind)
        if tensor is not None and level is not None:
            kind = _BINARY[kind]
            inputs[1:2] = self._signs_of(tensor, kind, level)
            arguments["quantize_zero_to"] = 1.0
        for name in (*inputs, *call.outputs):
            self._declare(name)
        function = {
            "type": kind,
            "inputs": inputs,
            "outputs": list(call.outputs),
            "args": arguments,
        }
        _create_function_nntxt(self._network.function.add(), call.name, function)

    def _signs_of(self, tensor: DeployedTensor, kind: str, level: np.ndarray) -> List[str]:
        """Three inputs in place of the weights: one that is not read, the signs, the factors."""
        name = tensor.name
        unused, signs, factors = f"{name}/unused", f"{name}/signs", f"{name}/level"
        if name not in self.signs:
            bits = (tensor.array > 0).astype(np.float32)
            # The runtime has a row of an affine layer's weights for each output.
            bits = bits.T if kind == "BinaryWeightAffine" else bits
            padded = np.zeros(-(-bits.size // _WORD) * _WORD, np.float32)
            padded[: bits.size] = bits.ravel()
            is_matrix = kind == "BinaryWeightAffine"
            self._store(signs, padded, (1, padded.size) if is_matrix else tensor.shape)
            self._store(unused, np.zeros(1, np.float32), (1, 1))
            self._store(factors, level, level.shape)
            self._types[signs] = "SIGN"
            self.signs[name] = padded.size // 8
        return [unused, signs, factors]

    def _declare(self, name: str) -> None:
        if name in self._types:
            return
        if name in self._run.arrays:
            array = self._run.arrays[name]
            self._store(name, array, array.shape)
            return
        self._types[name] = "FLOAT32"
        variable = self._network.variable.add(name=name, type="Buffer")
        variable.shape.dim.extend(self._run.shapes[name])

    def _store(self, name: str, values: np.ndarray, shape: Tuple[int, ...]) -> None:
        self._types[name] = "FLOAT32"
        self._network.variable.add(name=name, type="Parameter").shape.dim.extend(shape)
        parameter = self._definition.parameter.add(variable_name=name)
        parameter.shape.dim.extend(shape)
        parameter.data.extend(values.ravel().tolist())


def opposite_levels(tensor: DeployedTensor, kind: str) -> Optional[np.ndarray]:
    """``a`` for each output if the weights of a layer are ``+a`` and ``-a`` only; else None."""
    axis = -1 if kind == "Affine" else 0
    if tensor.quantizer.is_float or len(tensor.shape) < 2:
        return None
    if kind == "Affine" and len(tensor.shape) != 2:
        return None
    rows = np.moveaxis(np.abs(tensor.array), axis, 0).reshape(tensor.shape[axis], -1)
    is_one = (rows == rows[:, :1]).all() and rows[:, 0].min() > 0
    return rows[:, 0].copy() if is_one else None
