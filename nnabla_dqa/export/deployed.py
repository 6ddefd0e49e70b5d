"""A deployed network in memory, and what is known of the file it was written to."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, Dict, Mapping, Optional, Tuple

from nnabla_dqa._util.tables import format_table
from nnabla_dqa.export.activation import DeployedActivation
from nnabla_dqa.export.tensor import DeployedTensor
from nnabla_dqa.nnp_format.parameters import Parameter


@dataclasses.dataclass
class Deployed:
    """A network as it is deployed: what all deploying gives, and writers turn into files.

    Attributes:
        definition: NNabla's ``NNablaProtoBuf`` of standard functions, without
            parameters.
        parameters: All of them by name; those of ``tensors`` lie on their levels.
        tensors: What was quantized, by the name of the parameter.
        select: Which quantizer of each layer was taken, ``"target"`` or ``"argmax"``.
        source: What the network was converted from, if that was a file.
        others: Members of the file it came from that are to be kept.
        messages: What a user should know, a line each.
        activations: What enters layers quantized, by the name of the variable.
    """

    definition: Any
    parameters: Dict[str, Parameter]
    tensors: Dict[str, DeployedTensor]
    select: str = "target"
    source: Optional[Mapping[str, Any]] = None
    others: Dict[str, bytes] = dataclasses.field(default_factory=dict)
    messages: Tuple[str, ...] = ()
    activations: Dict[str, DeployedActivation] = dataclasses.field(default_factory=dict)

    @property
    def networks(self) -> Tuple[str, ...]:
        """Names of the networks."""
        return tuple(network.name for network in self.definition.network)


@dataclasses.dataclass(frozen=True)
class Deployment:
    """The file that a deployed network was written to; ``str()`` of it is a table."""

    path: Path
    file_bytes: int
    deployed: Deployed = dataclasses.field(repr=False)

    @property
    def layers(self) -> Tuple[DeployedTensor, ...]:
        """The quantized layers."""
        return tuple(self.deployed.tensors.values())

    @property
    def activations(self) -> Tuple[DeployedActivation, ...]:
        """What enters layers quantized."""
        return tuple(self.deployed.activations.values())

    @property
    def networks(self) -> Tuple[str, ...]:
        """Names of the networks."""
        return self.deployed.networks

    @property
    def messages(self) -> Tuple[str, ...]:
        """What a user should know, a line each."""
        return self.deployed.messages

    @property
    def parameters(self) -> int:
        """The numbers in all parameters."""
        return sum(p.array.size for p in self.deployed.parameters.values())

    @property
    def weights(self) -> int:
        """The number of weights in the quantized layers."""
        return sum(row.weights for row in self.layers)

    @property
    def bits_per_weight(self) -> float:
        """Mean bits of the quantizers over the weights of the quantized layers."""
        return sum(row.bits * row.weights for row in self.layers) / self.weights

    @property
    def file_bits_per_parameter(self) -> float:
        """Bits of the whole file, network definition and biases included, per parameter."""
        return 8 * self.file_bytes / self.parameters

    def __str__(self) -> str:
        head = ("layer", "weights", "quantizer", "bits", "values", "attention")
        rows = [
            (
                row.layer,
                f"{row.weights:,}",
                row.quantizer.name,
                str(row.bits),
                str(row.values),
                " ".join(f"{a:.3f}" for a in row.attention),
            )
            for row in self.layers
        ] + [
            (
                row.layer,
                "-",
                row.quantizer.name,
                str(row.bits),
                "-",
                " ".join(f"{a:.3f}" for a in row.attention),
            )
            for row in self.activations
        ]
        return (
            f"{format_table([head, *rows])}\n{self.path}: {self.file_bytes:,} bytes, "
            f"{self.file_bits_per_parameter:.2f} bits per parameter on disk (with what stays float "
            f"and the network's definition)"
        )
