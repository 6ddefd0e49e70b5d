"""What is in an NNP, layer by layer: bits, bytes, attention."""

from __future__ import annotations

import dataclasses
import math
import zipfile
from pathlib import Path
from typing import Any, Dict, List, Mapping, Optional, Sequence, Tuple, Union

import nnabla as nn
import numpy as np

from nnabla_dqa._util.files import PathLike
from nnabla_dqa._util.renamed import renamed
from nnabla_dqa._util.tables import format_table
from nnabla_dqa.export.deployed import Deployed
from nnabla_dqa.export.metadata import DEPLOYED, PACKED, PackedTensor, packed_tensors
from nnabla_dqa.export.nnp import deployed_of
from nnabla_dqa.export.tensor import DeployedTensor
from nnabla_dqa.layers.config import ACTIVATION
from nnabla_dqa.layers.functions import WEIGHT_INPUT
from nnabla_dqa.layers.report import LayerReport, layer_report, short_names
from nnabla_dqa.layers.tensors import INPUT, OF_TRAINING
from nnabla_dqa.mixing.mixture import CHOSEN
from nnabla_dqa.nnp.expand import state_path
from nnabla_dqa.nnp.file import CONVERTED, NetworkFile
from nnabla_dqa.nnp.layers import FileLayer, Skipped, discover
from nnabla_dqa.nnp_format.parameters import Parameter
from nnabla_dqa.quantization.encoding import FLOAT_BITS, RowLayout, packed_bytes

_Quantized = Union[DeployedTensor, PackedTensor]


@dataclasses.dataclass(frozen=True)
class LayerSummary:
    """One layer of an NNP.

    ``bits`` is what the layer ends with: its lowest bit width in a converted
    file. ``packed_bytes`` counts codes of that many bits and a float32 scale
    and offset a range. ``share`` is the layer's part of all weights. ``activations`` are
    the quantizers of what enters the layer, none if that is float; ``activation_bits`` what
    it ends with, ``activation_bytes`` of all that enters its functions at batch 1;
    ``input_of`` the layer whose quantizers it shares, if it is what enters that one too.
    """

    layer: str
    function: str
    shape: Tuple[int, ...]
    weights: int
    rule: str
    quantizers: Tuple[str, ...]
    attention: Tuple[float, ...]
    bits: int
    float_bytes: int
    packed_bytes: int
    share: float
    activations: Tuple[str, ...] = ()
    activation_bits: int = FLOAT_BITS
    activation_bytes: int = 0
    input_of: str = ""

    @property
    def entering(self) -> str:
        """A line on what enters the layer."""
        names = " ".join(self.activations)
        return (
            f"enters {self.layer}: {names}, {self.activation_bits} bits, "
            f"{self.activation_bytes:,} bytes at batch 1"
            + (f", the same as enters {self.input_of}" if self.input_of else "")
        )


@renamed(untouched="skipped")
@dataclasses.dataclass(frozen=True)
class FileSummary:
    """An NNP; ``str()`` of it is a table.

    ``members`` are the compressed bytes of the zip's members; with the zip's
    own directory they make ``file_bytes``, the size on disk.
    """

    path: Path
    kind: str
    layers: Tuple[LayerSummary, ...]
    skipped: Tuple[str, ...]
    other_parameters: int
    networks: Tuple[str, ...]
    runs: Tuple[str, ...]
    file_bytes: int
    members: Mapping[str, int]

    @property
    def weights(self) -> int:
        """The weights of all layers."""
        return sum(row.weights for row in self.layers)

    @property
    def float_bytes(self) -> int:
        """All parameters as float32."""
        return 4 * (self.weights + self.other_parameters)

    @property
    def packed_bytes(self) -> int:
        """Weights at their bits, everything else as float32."""
        return sum(row.packed_bytes for row in self.layers) + 4 * self.other_parameters

    def to_json(self) -> Dict[str, Any]:
        """All of it as JSON values."""
        return {
            **dataclasses.asdict(self),
            "path": str(self.path),
            "weights": self.weights,
            "float_bytes": self.float_bytes,
            "packed_bytes": self.packed_bytes,
        }

    def __str__(self) -> str:
        head = (
            *("layer", "function", "shape", "weights", "rule", "quantizers", "attention"),
            *("bits", "float bytes", "packed", "share"),
        )
        rows: List[Tuple[str, ...]] = [
            (
                row.layer,
                row.function,
                "x".join(map(str, row.shape)),
                f"{row.weights:,}",
                row.rule or "-",
                " ".join(row.quantizers) or "-",
                " ".join(f"{a:.3f}" for a in row.attention) or "-",
                str(row.bits),
                f"{row.float_bytes:,}",
                f"{row.packed_bytes:,}",
                f"{row.share:.1%}",
            )
            for row in self.layers
        ]
        others = 4 * self.other_parameters
        rows.append(
            (
                "other parameters",
                *[""] * 2,
                f"{self.other_parameters:,}",
                *[""] * 3,
                str(FLOAT_BITS),
                f"{others:,}",
                f"{others:,}",
                "",
            )
        )
        rows.append(
            (
                "total",
                *[""] * 2,
                f"{self.weights + self.other_parameters:,}",
                *[""] * 4,
                f"{self.float_bytes:,}",
                f"{self.packed_bytes:,}",
                "",
            )
        )
        runs = ", ".join(self.runs) or "none named"
        members = ", ".join(f"{name} {size:,}" for name, size in self.members.items())
        return "\n".join(
            [
                format_table([head, *rows]),
                *(row.entering for row in self.layers if row.activations),
                *(f"skipped: {entry}" for entry in self.skipped),
                f"networks: {', '.join(self.networks)}; run: {runs}",
                f"{self.path}: {self.kind}, {self.file_bytes:,} bytes on disk ({members})",
            ]
        )


def summarize(path: PathLike, max_bytes: Optional[int] = None) -> FileSummary:
    """The layers of an NNP, whether plain, converted, deployed or packed.

    The classes of its quantizers need not be known.

    Args:
        path: The file.
        max_bytes: What it may unpack to; the default is that of
            :meth:`nnabla_dqa.nnp_format.archive.Archive.read`.

    Raises:
        NNPError: It is no NNP, or broken.
        OSError: It cannot be read.

    Examples:
        >>> import nnabla_dqa as dqa
        >>> [(layer.layer, layer.shape, layer.bits) for layer in dqa.summarize("lenet.nnp").layers]
        [('conv1/conv', (4, 1, 3, 3), 32), ('fc/affine', (144, 10), 32)]
    """
    path = Path(path)
    file = NetworkFile.read(path, max_bytes)
    deployed = deployed_of(file.archive) if file.kind == DEPLOYED else None
    packed = packed_tensors(file.archive) if file.kind == PACKED else []
    tensors: Dict[str, _Quantized] = {tensor.name: tensor for tensor in packed}
    if deployed is not None:
        tensors.update(deployed.tensors)
    found, skipped = _discovered(file, packed)
    total = sum(layer.size for layer in found)
    layers = tuple(
        _with_activations(
            file, layer, deployed, _row(file, layer, tensors.get(layer.weight), total)
        )
        for layer in found
    )
    with zipfile.ZipFile(path) as archive:
        members = {info.filename: info.compress_size for info in archive.infolist()}
    return FileSummary(
        path,
        file.kind,
        layers,
        tuple(str(entry) for entry in skipped),
        _others(file, found, packed),
        file.networks,
        tuple(dict.fromkeys(e.network_name for e in file.archive.definition.executor)),
        path.stat().st_size,
        members,
    )


def _discovered(
    file: NetworkFile, packed: Sequence[PackedTensor]
) -> Tuple[Sequence[FileLayer], Sequence[Skipped]]:
    """The layers of a file, those too whose weights its networks unpack."""
    if not packed:
        return file.layers, file.skipped
    zero = np.float32(0)
    stand_ins = {t.name: Parameter(np.broadcast_to(zero, t.shape), False) for t in packed}
    return discover(file.archive.definition, {**file.archive.parameters, **stand_ins})


def file_report(file: NetworkFile, layer: FileLayer) -> LayerReport:
    """The state of one layer of a converted file."""
    mixture = file.mixtures[layer.name]
    scope = state_path(layer.weight)
    parameters = file.archive.parameters
    state = {
        path: nn.Variable.from_numpy_array(parameters[f"{scope}/{path}"].array)
        for path in mixture.state_layout(layer.shape)
    }
    attention = mixture.mixing.evaluate(state, len(mixture.quantizers), mixture.target)
    is_hard = mixture.is_hard(state)
    row = layer_report(layer.name, layer.function, layer.shape, mixture, attention, is_hard)
    chosen = parameters.get(f"{scope}/{CHOSEN}")
    return row if chosen is None else row.with_choice(int(np.argmax(chosen.array)))


def activation_report(file: NetworkFile, layer: FileLayer) -> LayerReport:
    """The state of what enters one layer of a converted file, which is quantized."""
    mixture = file.assigned[layer.name].activations
    assert mixture is not None
    arrays = file.activation_state(layer)
    state = {path: nn.Variable.from_numpy_array(array) for path, array in arrays.items()}
    attention = mixture.mixing.evaluate(state, len(mixture.quantizers), mixture.target)
    is_hard = mixture.is_hard(state)
    name = layer.name + INPUT
    return layer_report(name, layer.function, layer.shape, mixture, attention, is_hard, ACTIVATION)


def _row(
    file: NetworkFile, layer: FileLayer, tensor: Optional[_Quantized], total: int
) -> LayerSummary:
    bits, groups, rule = FLOAT_BITS, 1, ""
    names: Tuple[str, ...] = ()
    attention: Tuple[float, ...] = ()
    if tensor is not None:
        bits, groups = tensor.bits, tensor.groups
        names, attention = (tensor.quantizer.name,), tensor.attention
    elif file.kind == CONVERTED and layer.name in file.assigned:
        report = file_report(file, layer)
        target = file.mixtures[layer.name].quantizers[report.target]
        bits, groups = target.bits, RowLayout.of(layer.shape, target.axis).rows
        rule, names, attention = file.assigned[layer.name].rule, report.quantizers, report.attention
    return LayerSummary(
        layer.name,
        layer.function,
        layer.shape,
        layer.size,
        rule,
        names,
        attention,
        bits,
        4 * layer.size,
        packed_bytes(layer.size, bits, groups),
        layer.size / total,
    )


def _with_activations(
    file: NetworkFile, layer: FileLayer, deployed: Optional[Deployed], row: LayerSummary
) -> LayerSummary:
    names: Tuple[str, ...] = ()
    if deployed is not None:
        read = {name for _, name, _ in layer.reads}
        found = [a for name, a in deployed.activations.items() if name in read]
        if not found:
            return row
        names, bits = (found[0].quantizer.name,), found[0].bits
        owner = found[0].layer[: -len(INPUT)]
    else:
        first = file.input_owner(layer)
        mixture = None if first is None else file.assigned[first.name].activations
        if first is None or mixture is None:
            return row
        names, bits, owner = short_names(mixture), mixture.target_quantizer.bits, first.name
    return dataclasses.replace(
        row,
        activations=names,
        activation_bits=bits,
        activation_bytes=math.ceil(_entering(file, layer) * bits / 8),
        input_of="" if owner == layer.name else owner,
    )


def _entering(file: NetworkFile, layer: FileLayer) -> int:
    """The numbers that enter a layer's functions at batch 1, in the network that is run."""
    definition = file.archive.definition
    runs = {e.network_name for e in definition.executor} or {definition.network[0].name}
    total = 0
    for network in definition.network:
        if network.name not in runs:
            continue
        shapes = {v.name: list(v.shape.dim) for v in network.variable}
        entering = {
            function.input[0]
            for function in network.function
            if len(function.input) > WEIGHT_INPUT and function.input[WEIGHT_INPUT] == layer.weight
        }
        total += sum(math.prod(shapes.get(name, [0])[1:]) for name in entering)
    return total


def _others(file: NetworkFile, layers: Sequence[FileLayer], packed: Sequence[PackedTensor]) -> int:
    """Numbers in parameters that are neither weights of layers nor state of this package."""
    weights = {layer.weight for layer in layers}
    scopes = tuple(f"{state_path(layer.weight)}/" for layer in file.quantized)
    scopes += tuple(f"{tensor.scope}/" for tensor in packed if tensor.scope)
    names: List[str] = [
        name
        for name in file.archive.parameters
        if name not in weights and not name.startswith(scopes) and name not in OF_TRAINING
    ]
    return sum(file.archive.parameters[name].array.size for name in names)
