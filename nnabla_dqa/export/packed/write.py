"""Deployed networks as NNP files with packed weights, which the networks unpack themselves.

The weights' codes are parameters of far fewer float32 numbers, from which standard functions
compute the weights in every run: any NNabla opens the file, and nothing else in it changes. It
is for shipping, not for speed.
"""

from __future__ import annotations

import dataclasses
import hashlib
import math
import zipfile
import zlib
from pathlib import Path
from typing import Any, Dict, List, Mapping, NamedTuple, Optional, Sequence, Set, Tuple

import nnabla as nn
import numpy as np
from google.protobuf import text_format
from nnabla.utils import nnabla_pb2

from nnabla_dqa._util.files import PathLike
from nnabla_dqa._util.tables import format_table
from nnabla_dqa._version import __version__
from nnabla_dqa.export.deployed import Deployed
from nnabla_dqa.export.errors import ExportError, check_ending, check_finite
from nnabla_dqa.export.metadata import FORMAT, PACKED, packed_to_json
from nnabla_dqa.export.packed.choose import NOT_SMALLER, choose, codes_of, deflated
from nnabla_dqa.export.packed.codes import pack
from nnabla_dqa.export.packed.functions import FLOAT32, Placed, constants, functions, unpacked
from nnabla_dqa.export.tensor import DeployedTensor
from nnabla_dqa.nnp_format.archive import Archive, keep_only
from nnabla_dqa.nnp_format.parameters import Parameter

SUFFIX = ".nnp"


class Source(NamedTuple):
    """The deployed file that was packed."""

    file: str
    sha256: str

    @classmethod
    def of(cls, path: PathLike) -> Source:
        """Of a file that is there."""
        return cls(Path(path).name, hashlib.sha256(Path(path).read_bytes()).hexdigest())


@dataclasses.dataclass(frozen=True)
class PackedFile:
    """An NNP with packed weights; ``str()`` of it is a table of its bytes.

    Attributes:
        path: The file.
        file_bytes: Its size.
        deployed: What was packed.
        packed: The names of the tensors whose weights are packed.
        weight_bytes: Their codes, deflated.
        parameter_bytes: All parameters, deflated: codes, scales, biases, float weights.
        network_bytes: The definition of the networks, deflated.
        messages: What a user should know, a line each.
    """

    path: Path
    file_bytes: int
    deployed: Deployed = dataclasses.field(repr=False)
    packed: Tuple[str, ...]
    weight_bytes: int
    parameter_bytes: int
    network_bytes: int
    messages: Tuple[str, ...] = ()

    @property
    def weights(self) -> int:
        """The number of packed weights."""
        return sum(tensor.weights for tensor in self._tensors)

    @property
    def bits_per_weight(self) -> float:
        """Deflated bits of a packed weight, without scales and functions."""
        return 8 * self.weight_bytes / self.weights

    @property
    def least_weight_bytes(self) -> int:
        """``log2(levels)`` bits for each packed weight."""
        bits = sum(t.weights * math.log2(max(1, t.quantizer.levels)) for t in self._tensors)
        return math.ceil(bits / 8)

    @property
    def _tensors(self) -> List[DeployedTensor]:
        return [self.deployed.tensors[name] for name in self.packed]

    def __str__(self) -> str:
        others = self.parameter_bytes - self.weight_bytes
        rest = self.file_bytes - self.parameter_bytes - self.network_bytes
        rows: List[Tuple[str, ...]] = [
            ("part", "bytes, deflated", "at log2(levels) bits"),
            ("packed weights", f"{self.weight_bytes:,}", f"{self.least_weight_bytes:,}"),
            ("other parameters", f"{others:,}", ""),
            ("networks", f"{self.network_bytes:,}", ""),
            ("everything else", f"{rest:,}", ""),
            ("file", f"{self.file_bytes:,}", ""),
        ]
        return (
            f"{format_table(rows)}\n{self.path}: {self.file_bytes:,} bytes, "
            f"{self.bits_per_weight:.2f} bits for each of {self.weights:,} packed weights"
        )


def write_packed(deployed: Deployed, path: PathLike, source: Optional[Source] = None) -> PackedFile:
    """Write a deployed network as an NNP with packed weights, atomically.

    All its networks stay. Weights on evenly spaced levels are packed where the
    file gets smaller by it, and unpacked once in NNabla before anything is written, which
    must give the weights bit for bit.

    Args:
        deployed: As of :func:`nnabla_dqa.export.onnx.write.write_onnx`.
        path: Ends in ``.nnp``; replaced if it exists.
        source: The file that ``deployed`` was read from.

    Raises:
        ExportError: ``path`` does not end in ``.nnp``, a parameter holds NaN or
            infinity, a tensor is not on its levels, or the file would not get smaller.
        OSError: The file cannot be written.
    """
    target = check_ending(path, SUFFIX)
    for name, (array, _) in deployed.parameters.items():
        check_finite(name, array)
    groups, saved, messages = choose(deployed)
    definition = nnabla_pb2.NNablaProtoBuf()
    definition.CopyFrom(deployed.definition)
    scope = _free_scope(deployed)
    made: Dict[str, Parameter] = {}
    owner: Dict[str, str] = {}
    weight_bytes = 0
    for form, tensors in groups.items():
        name = f"{scope}/{form.base}_{form.digits}"
        numbers = pack(codes_of(tensors), form)
        weight_bytes += deflated(numbers)
        placed = Placed(name, form, tuple(tensors))
        _prove(placed, numbers)
        new = {f"{name}/codes": numbers, **constants(placed)}
        _insert(definition, placed, list(new))
        made.update({key: Parameter(array, False) for key, array in new.items()})
        owner.update({tensor.name: name for tensor in tensors})
    if saved <= _text_bytes(definition) - _text_bytes(deployed.definition):
        others = "".join(f"; {message}" for message in messages if NOT_SMALLER not in message)
        raise ExportError(f"{NOT_SMALLER}; nothing was written{others}")
    kept = {k: p for k, p in deployed.parameters.items() if k not in owner}
    metadata = _metadata(deployed, owner, source)
    archive = Archive(target, definition, {**kept, **made}, metadata, deployed.others)
    size = archive.write(target)
    with zipfile.ZipFile(target) as written:
        members = {info.filename: info.compress_size for info in written.infolist()}
    return PackedFile(
        target,
        size,
        deployed,
        tuple(owner),
        weight_bytes,
        members[archive.parameter_member],
        members[archive.definition_member],
        messages,
    )


def _text_bytes(definition: Any) -> int:
    """What a definition takes in a file, deflated."""
    return len(zlib.compress(text_format.MessageToString(definition).encode(), 9))


def _free_scope(deployed: Deployed) -> str:
    """A scope in which nothing has a name."""
    names = set(deployed.parameters)
    for network in deployed.definition.network:
        names.update(v.name for v in network.variable)
        names.update(function.name for function in network.function)
    taken = {name.partition("/")[0] for name in names}
    scope, count = "unpack", 1
    while scope in taken:
        count += 1
        scope = f"unpack_{count}"
    return scope


def _prove(placed: Placed, numbers: np.ndarray) -> None:
    """Unpack in NNabla, and compare."""
    with nn.context_scope(FLOAT32):
        found = unpacked(placed, numbers)
    for tensor, array in zip(placed.tensors, found):
        if not np.array_equal(array, tensor.array):
            raise ExportError(
                f"parameter {tensor.name}: this NNabla does not unpack its weights to what they "
                f"are; nothing was written"
            )


def _insert(definition: Any, placed: Placed, parameters: List[str]) -> None:
    """Let each network compute those of the tensors that it uses first, and no other.

    A variable that nothing uses would be an output of the network to NNabla.
    """
    names = {tensor.name for tensor in placed.tensors}
    part = functions(placed)
    used: Dict[str, List[str]] = {}
    for network in definition.network:
        read = {name for function in network.function for name in function.input} & names
        needed = _needed(part.function, read)
        held = {name for function in needed for name in (*function.input, *function.output)}
        keep_only(network.variable, lambda v: v.name not in names)
        network.variable.extend(v for v in part.variable if v.name in held)
        rest = list(network.function)
        del network.function[:]
        network.function.extend([*needed, *rest])
        used[network.name] = [name for name in parameters if name in held]
    for executor in definition.executor:
        if any(listed.variable_name in names for listed in executor.parameter_variable):
            for name in used.get(executor.network_name, parameters):
                executor.parameter_variable.add(variable_name=name)
    for section in (*definition.executor, *definition.optimizer):
        keep_only(section.parameter_variable, lambda listed: listed.variable_name not in names)


def _needed(part: Sequence[Any], names: Set[str]) -> List[Any]:
    """The functions, each behind those it reads from, without which ``names`` are not computed."""
    wanted, found = set(names), []
    for function in reversed(part):
        if wanted.intersection(function.output):
            wanted.update(function.input)
            found.append(function)
    return found[::-1]


def _metadata(
    deployed: Deployed, owner: Mapping[str, str], source: Optional[Source]
) -> Dict[str, Any]:
    return {
        "format": FORMAT,
        "kind": PACKED,
        "nnabla_dqa": __version__,
        "source": None if source is None else source._asdict(),
        "tensors": [
            packed_to_json(tensor, owner.get(name, ""))
            for name, tensor in deployed.tensors.items()
            if not tensor.quantizer.is_float
        ],
    }
