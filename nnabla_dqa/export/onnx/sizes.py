"""What an ONNX file weighs: its bytes by part, against the least that its levels need."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import List, Tuple

from nnabla_dqa._util.tables import format_table
from nnabla_dqa.export.deployed import Deployed
from nnabla_dqa.export.network import OPEN, Network
from nnabla_dqa.export.onnx.graph import Graph
from nnabla_dqa.export.onnx.weights import FLOATS, SCALES, WEIGHTS
from nnabla_dqa.export.tensor import DeployedTensor


@dataclasses.dataclass(frozen=True)
class Sizes:
    """The bytes of a file by part.

    Attributes:
        weights: Packed codes of the quantized weights.
        scales: Their scales, offsets and tables of levels.
        floats: Other parameters, float32: biases, normalization, weights that stay float.
        total: The whole file.
        least_weights: ``log2(levels)`` bits for each quantized weight.
    """

    weights: int
    scales: int
    floats: int
    total: int
    least_weights: int

    @classmethod
    def of(cls, graph: Graph, deployed: Deployed, total: int) -> Sizes:
        """Of a graph that was written as so many bytes."""

        def part(name: str) -> int:
            return sum(v.nbytes for k, v in graph.initializers.items() if graph.parts[k] == name)

        tensors = [t for n, t in deployed.tensors.items() if n in graph.network.arrays]
        least = sum(_least(tensor) for tensor in tensors)
        return cls(part(WEIGHTS), part(SCALES), part(FLOATS), total, least)

    @property
    def graph(self) -> int:
        """What is neither: nodes, names, and the constants of the nodes."""
        return self.total - self.weights - self.scales - self.floats

    @property
    def least(self) -> int:
        """The arithmetic minimum: the weights at ``log2(levels)`` bits, all else in float32."""
        return self.least_weights + self.scales + self.floats

    def __str__(self) -> str:
        rows: List[Tuple[str, ...]] = [
            ("part", "bytes", "at least"),
            ("weights", f"{self.weights:,}", f"{self.least_weights:,}"),
            ("scales, offsets", f"{self.scales:,}", f"{self.scales:,}"),
            ("other parameters", f"{self.floats:,}", f"{self.floats:,}"),
            ("graph", f"{self.graph:,}", "0"),
            ("file", f"{self.total:,}", f"{self.least:,}"),
        ]
        return format_table(rows)


def _least(tensor: DeployedTensor) -> int:
    if tensor.quantizer.is_float:
        return 0
    return math.ceil(tensor.weights * math.log2(max(1, tensor.quantizer.levels)) / 8)


@dataclasses.dataclass(frozen=True)
class OnnxFile:
    """An ONNX file that was written; ``str()`` of it is a table of its bytes.

    Attributes:
        path: The file.
        deployed: What was written.
        network: What of it is run, as it was written.
        sizes: Its bytes by part.
        messages: What a user should know, a line each.
    """

    path: Path
    deployed: Deployed = dataclasses.field(repr=False)
    network: Network = dataclasses.field(repr=False)
    sizes: Sizes
    messages: Tuple[str, ...] = ()

    def __str__(self) -> str:
        shown = [
            f"{name} {self._shape(name)}" for name in (*self.network.inputs, *self.network.outputs)
        ]
        count = len(self.network.inputs)
        runs = f"{', '.join(shown[:count]) or 'no input'} -> {', '.join(shown[count:])}"
        return f"{self.sizes}\n{self.path}: {self.sizes.total:,} bytes; {runs}"

    def _shape(self, name: str) -> str:
        sizes = ("batch" if n == OPEN else str(n) for n in self.network.shapes[name])
        return f"({', '.join(sizes)})"
