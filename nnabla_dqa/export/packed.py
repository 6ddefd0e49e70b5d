"""Deployed networks as smaller NNPs: codes packed into float32 numbers, unpacked by the network.

A number ``x = (-1)^s (1 + M / 2^23) 2^E`` with 0 <= E < 64 holds digits of base b (the number of
levels), the first ``k1`` of them in the mantissa and ``k2`` in exponent and sign:

    M = sum_i c_i b^i  (b^k1 <= 2^23),    E + 64 s = sum_j c_(k1+j) b^j  (b^k2 <= 2^7)

Functions that every NNabla has take them apart, exactly: comparisons with powers of two find E,
and a digit is ``floor((n + 1/2) / b^i) - b floor((n + 1/2) / b^(i+1))``, where no quotient lies so
close to a whole number that rounding would reach it (n < 2^23). So files come out of deflate near
the width of the codes, where float32 weights of four levels take 3 bits each; and the codes are
unpacked anew in every forward pass.
"""

from __future__ import annotations

import dataclasses
import math
import zlib
from pathlib import Path
from typing import Any, Dict, List, NamedTuple, Optional, Set, Tuple

import nnabla as nn
import nnabla.functions as F
import numpy as np
from nnabla.utils import nnabla_pb2

from nnabla_dqa._util.devices import in_float32
from nnabla_dqa._util.files import PathLike
from nnabla_dqa._util.tables import format_table
from nnabla_dqa._version import __version__
from nnabla_dqa.export.deployed import Deployed
from nnabla_dqa.export.errors import ExportError
from nnabla_dqa.export.metadata import FORMAT, PACKED
from nnabla_dqa.export.tensor import DeployedTensor
from nnabla_dqa.nnp_format.archive import Archive, keep_only
from nnabla_dqa.nnp_format.parameters import Parameter

SUFFIX = ".nnp"
_MANTISSA, _EXPONENT = 23, 6
_GRAPH_BYTES = 800
"""What the functions of one layer add to a file, deflated, about; a layer has to save more."""


class Digits(NamedTuple):
    """How many digits of a base a number holds.

    Attributes:
        base: Of the digits.
        low: In the mantissa.
        high: In exponent and sign.
    """

    base: int
    low: int
    high: int

    @classmethod
    def of(cls, base: int) -> Digits:
        """As many as there is room for."""
        return cls(base, _count(base, 2**_MANTISSA), _count(base, 2 ** (_EXPONENT + 1)))


def _count(base: int, room: int) -> int:
    count = 0
    while base ** (count + 1) <= room:
        count += 1
    return count


def pack(codes: np.ndarray, digits: Digits) -> np.ndarray:
    """Whole numbers below ``digits.base``, in C order, as float32 numbers; zeros fill the last."""
    together = digits.low + digits.high
    flat = codes.ravel().astype(np.int64)
    rows = np.pad(flat, (0, -flat.size % together)).reshape(-1, together)
    mantissa = rows[:, : digits.low] @ digits.base ** np.arange(digits.low)
    rest = rows[:, digits.low :] @ digits.base ** np.arange(digits.high)
    exponent, sign = rest % 2**_EXPONENT, rest // 2**_EXPONENT
    numbers = (1 + mantissa / 2.0**_MANTISSA) * 2.0**exponent
    return np.where(sign == 1, -numbers, numbers).astype(np.float32)[:, None]


def unpacking(
    x: nn.Variable, powers: Dict[int, nn.Variable], digits: Digits, shape: Tuple[int, ...]
) -> nn.Variable:
    """The codes, of shape ``shape``, as a graph of standard functions.

    Args:
        x: The numbers, (n, 1).
        powers: ``b^0 .. b^k``, (1, k + 1), by k: for each k of ``digits``.
        digits: What a number holds.
        shape: Of the codes.
    """
    number = F.abs(x)
    rest = F.mul_scalar(F.less_scalar(x, 0.0), float(2**_EXPONENT))
    for step in reversed(range(_EXPONENT)):
        shift = 2**step
        above = F.greater_equal_scalar(number, 2.0**shift)
        number = F.where(above, F.mul_scalar(number, 2.0**-shift), number)
        rest = F.add2(rest, F.mul_scalar(above, float(shift)))
    mantissa = F.mul_scalar(F.add_scalar(number, -1.0), 2.0**_MANTISSA)
    parts = [_digits(mantissa, powers[digits.low], digits.base)]
    if digits.high:
        parts.append(_digits(rest, powers[digits.high], digits.base))
    codes = parts[0] if len(parts) == 1 else F.concatenate(*parts, axis=1)
    flat = F.reshape(codes, (codes.shape[0] * codes.shape[1],), inplace=False)
    if flat.shape[0] != math.prod(shape):
        flat = F.slice(flat, start=(0,), stop=(math.prod(shape),), step=(1,))
    return F.reshape(flat, shape, inplace=False)


def _digits(x: nn.Variable, powers: nn.Variable, base: int) -> nn.Variable:
    """All digits of whole numbers (n, 1) below 2^23, the lowest first."""
    quotients = F.floor(F.div2(F.add_scalar(x, 0.5), powers))
    rows, count = quotients.shape[0], quotients.shape[1] - 1
    own = F.slice(quotients, start=(0, 0), stop=(rows, count), step=(1, 1))
    following = F.slice(quotients, start=(0, 1), stop=(rows, count + 1), step=(1, 1))
    return F.sub2(own, F.mul_scalar(following, float(base)))


@dataclasses.dataclass(frozen=True)
class PackedTensor:
    """How one tensor is written.

    Attributes:
        name: The parameter.
        weights: How many it has.
        levels: Of its quantizer.
        plain: Bytes of its float32 numbers, deflated.
        packed: Bytes of its packed codes, deflated; None if it stays float32.
    """

    name: str
    weights: int
    levels: int
    plain: int
    packed: Optional[int]

    @property
    def least(self) -> int:
        """Bytes at ``log2(levels)`` bits a weight."""
        return math.ceil(self.weights * math.log2(max(1, self.levels)) / 8)


@dataclasses.dataclass(frozen=True)
class PackedFile:
    """A packed NNP that was written; ``str()`` of it is a table of its bytes.

    Attributes:
        path: The file.
        file_bytes: Its size.
        tensors: The quantized tensors.
    """

    path: Path
    file_bytes: int
    tensors: Tuple[PackedTensor, ...]

    @property
    def messages(self) -> Tuple[str, ...]:
        """What a user should know, a line each."""
        left = [tensor.name for tensor in self.tensors if tensor.packed is None]
        if not left:
            return ()
        return (f"stay float32, where packing saves nothing: {', '.join(left)}",)

    def __str__(self) -> str:
        rows: List[Tuple[str, ...]] = [("weights", "number", "deflated", "packed", "at least")]
        for t in self.tensors:
            packed = "-" if t.packed is None else f"{t.packed:,}"
            rows.append((t.name, f"{t.weights:,}", f"{t.plain:,}", packed, f"{t.least:,}"))
        return f"{format_table(rows)}\n{self.path}: {self.file_bytes:,} bytes"


def write_packed(deployed: Deployed, path: PathLike) -> PackedFile:
    """Write a deployed network as an NNP with packed codes, atomically.

    Its networks compute what those of the deployed file compute, bit for bit: each quantized
    weight is unpacked to the same float32 numbers. Left as they are: weights whose levels are
    a table, those of which packing saves less than the functions take, and everything float.

    Args:
        deployed: The network.
        path: Ends in ``.nnp``. Replaced if it exists.

    Raises:
        ExportError: Nothing of it can be packed with a gain.
        OSError: The file cannot be written.
    """
    definition = nnabla_pb2.NNablaProtoBuf()
    definition.CopyFrom(deployed.definition)
    parameters = dict(deployed.parameters)
    described, taken = [], {*parameters, *_variables(definition)}
    for name, tensor in deployed.tensors.items():
        packed, plain = _packed_bytes(tensor), _deflated(tensor.array)
        if packed is not None and packed + _GRAPH_BYTES < plain:
            parameters = _rewritten(definition, parameters, tensor, taken)
        else:
            packed = None
        levels = tensor.quantizer.levels if not tensor.quantizer.is_float else 0
        described.append(PackedTensor(name, tensor.weights, levels, plain, packed))
    if all(tensor.packed is None for tensor in described):
        raise ExportError(
            "no weight of it gets smaller by packing: they are few, or their levels lie in a "
            "table; the deployed .nnp is the smallest there is"
        )
    metadata = {
        "format": FORMAT,
        "kind": PACKED,
        "nnabla_dqa": __version__,
        "source": deployed.source,
        "tensors": [],
    }
    archive = Archive(Path(path), definition, parameters, metadata, deployed.others)
    return PackedFile(Path(path), archive.write(path), tuple(described))


def _deflated(array: np.ndarray) -> int:
    return len(zlib.compress(np.ascontiguousarray(array, "<f4").tobytes(), 9))


def _packed_bytes(tensor: DeployedTensor) -> Optional[int]:
    codes = tensor.codes
    if codes is None or tensor.levels is not None or tensor.quantizer.levels < 2:
        return None
    return _deflated(pack(codes, Digits.of(tensor.quantizer.levels)))


def _variables(definition: Any) -> List[str]:
    return [v.name for network in definition.network for v in network.variable]


def _rewritten(
    definition: Any, parameters: Dict[str, Parameter], tensor: DeployedTensor, taken: Set[str]
) -> Dict[str, Parameter]:
    """Let ``tensor.name`` be computed in the networks that use it; returns the parameters."""
    digits = Digits.of(tensor.quantizer.levels)
    arrays, names, part = _functions(tensor, digits, taken)
    made: Dict[str, Parameter] = {}
    for name, parameter in parameters.items():
        if name != tensor.name:
            made[name] = parameter
    for key, array in arrays.items():
        made[names[key]] = Parameter(array, False)
    for network in definition.network:
        used = {name for function in network.function for name in function.input}
        if tensor.name not in used:
            continue
        keep_only(network.variable, lambda v: v.name != tensor.name)
        known = {v.name for v in network.variable}
        network.variable.extend(v for v in part.variable if v.name not in known)
        functions = [*part.function, *network.function]
        copies = nnabla_pb2.Network()
        copies.function.extend(functions)
        network.ClearField("function")
        network.function.extend(copies.function)
    for section in (*definition.executor, *definition.optimizer):
        listed = [entry.variable_name for entry in section.parameter_variable]
        if tensor.name in listed:
            keep_only(section.parameter_variable, lambda e: e.variable_name != tensor.name)
            for key in arrays:
                if names[key] not in listed:
                    section.parameter_variable.add().variable_name = names[key]
    return made


def _functions(
    tensor: DeployedTensor, digits: Digits, taken: Set[str]
) -> Tuple[Dict[str, np.ndarray], Dict[str, str], Any]:
    """What unpacks a tensor: its arrays, names of variables, and a part of a network."""
    assert tensor.codes is not None
    assert tensor.scale is not None
    assert tensor.offset is not None
    arrays = {
        "codes": pack(tensor.codes, digits),
        "scale": np.asarray(tensor.scale, np.float32),
        "offset": np.asarray(tensor.offset, np.float32),
    }
    for count in {digits.low, digits.high} - {0}:
        arrays[f"powers_{count}"] = digits.base ** np.arange(count + 1, dtype=np.float32)[None]
    leaves = {
        key: nn.Variable.from_numpy_array(array, need_grad=False) for key, array in arrays.items()
    }
    powers = {count: leaves[f"powers_{count}"] for count in {digits.low, digits.high} - {0}}
    with in_float32(), nn.auto_forward(False):
        codes = unpacking(leaves["codes"], powers, digits, tensor.shape)
        w = F.add2(F.mul2(codes, leaves["scale"]), leaves["offset"])
        w.forward()
        if not np.array_equal(w.d, tensor.array):
            raise ExportError(f"{tensor.name}: NNabla's functions unpack it to other numbers")
    graph = nn.graph_def.create_graph_from_variable(
        "packed", [w], names={"w": w, **leaves}, parameter_scope=None
    )
    network = graph.as_proto(variable_batch_size=False).network[0]
    names = {"w": tensor.name}
    for key in arrays:
        shared = key.startswith("powers_")
        names[key] = (
            f"nnabla_dqa/{key}_of_{digits.base}" if shared else _free(f"{tensor.name}/{key}", taken)
        )
    for i, function in enumerate(network.function):
        function.name = _free(f"{tensor.name}/{function.type}_{i}", taken)
        for j, name in enumerate(function.output):
            if name not in names:
                names[name] = _free(f"{tensor.name}/{i}.{j}", taken)
    part = nnabla_pb2.Network()
    for v in network.variable:
        added = part.variable.add()
        added.CopyFrom(v)
        added.name = names[v.name]
        added.type = "Parameter" if v.name in arrays else "Buffer"
    for function in network.function:
        added = part.function.add()
        added.CopyFrom(function)
        added.input[:] = [names[name] for name in function.input]
        added.output[:] = [names[name] for name in function.output]
    return arrays, names, part


def _free(name: str, taken: Set[str]) -> str:
    while name in taken:
        name += "_"
    taken.add(name)
    return name
