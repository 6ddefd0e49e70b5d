"""An ONNX graph being put together: nodes, constants, and the names of values."""

from __future__ import annotations

from typing import Any, Dict, List, Mapping, Optional, Sequence, Set, Tuple, Union

import numpy as np

from nnabla_dqa._version import __version__
from nnabla_dqa.export.errors import ExportError
from nnabla_dqa.export.network import OPEN, Call, Network, Shape, not_written
from nnabla_dqa.export.onnx.integers import Activation
from nnabla_dqa.export.onnx.packages import onnx
from nnabla_dqa.export.tensor import DeployedTensor

OPSET = 13
IR_VERSION = 7
"""The version of the file format that belongs to opset 13."""
BATCH = "batch"
"""The name of the open axis."""
Array = Union[np.ndarray, Sequence[int], int, float]


class Graph:
    """The graph of one network; the functions of :mod:`.functions` add nodes to it.

    Values have the names that NNabla's variables have; those in between are
    called ``<number>`` behind the name of what they lead to.

    Args:
        network: What is written.
        tensors: Its quantized weights, by the name of the parameter.
        activations: What enters layers as bytes, by the name of the variable.
        pairs: Let convolutions stand between DequantizeLinear and QuantizeLinear.
    """

    def __init__(
        self,
        network: Network,
        tensors: Optional[Mapping[str, DeployedTensor]] = None,
        activations: Optional[Mapping[str, Activation]] = None,
        pairs: bool = False,
    ) -> None:
        self.network = network
        self.tensors = dict(tensors or {})
        self.activations = dict(activations or {})
        self.pairs = pairs
        self.paired: List[str] = []
        self.nodes: List[Any] = []
        self.initializers: Dict[str, np.ndarray] = {}
        self.parts: Dict[str, str] = {}
        self._constants: Dict[Tuple[Any, ...], str] = {}
        self._names = {*network.shapes, *network.inputs, *network.outputs}
        self._count = 0
        self._label = ""

    def shape(self, name: str) -> Shape:
        """The shape of a variable of the network."""
        return self.network.shapes[name]

    @property
    def made(self) -> Set[str]:
        """The values that are stored or computed so far."""
        return {*self.initializers, *(name for node in self.nodes for name in node.output)}

    def new(self) -> str:
        """A name that no value has."""
        self._count += 1
        name = f"_{self._count}"
        return self.new() if name in self._names else name

    def begin(self, label: str) -> None:
        """Give the next nodes this name."""
        self._label = label

    def node(
        self,
        kind: str,
        inputs: Sequence[str],
        output: Union[str, Sequence[str], None] = None,
        **attributes: Any,
    ) -> str:
        """Add a node; returns the name of its (first) output.

        Args:
            kind: The operator.
            inputs: Names of values; ``""`` for one that is left out.
            output: Name or names; default: a new one.
            attributes: Of the operator.
        """
        outputs = (
            [self.new()] if output is None else [output] if isinstance(output, str) else output
        )
        made = onnx().helper.make_node(kind, list(inputs), list(outputs), **attributes)
        if self._label:
            made.name, self._label = self._label, ""
        self.nodes.append(made)
        return str(outputs[0])

    def constant(self, value: Array, kind: Any = np.float32, part: str = "graph") -> str:
        """A constant; equal ones are stored once.

        Args:
            value: What it holds.
            kind: Its numpy type.
            part: Of the report of sizes.
        """
        array = np.ascontiguousarray(value, kind)
        array = array.reshape(np.shape(value))
        key = (array.dtype.str, array.shape, array.tobytes(), part)
        if key not in self._constants:
            self._constants[key] = self.initializer(self.new(), array, part)
        return self._constants[key]

    def initializer(self, name: str, array: np.ndarray, part: str) -> str:
        """A stored tensor of this name; returns the name."""
        self.initializers[name] = array
        self.parts[name] = part
        return name

    def axes(self, *axes: int) -> str:
        """The constant of some axes or sizes."""
        return self.constant(axes, np.int64)

    def reshape(self, x: str, shape: Sequence[int], output: Optional[str] = None) -> str:
        """``x`` in another shape of which one axis may be open."""
        sizes = [int(size) for size in shape]
        if sizes.count(OPEN) > 1:
            raise ExportError("more than one axis goes with the batch")
        return self.node("Reshape", [x, self.axes(*sizes)], output)

    def model(self) -> Any:
        """The finished model.

        Raises:
            ExportError: An output goes with the batch in several ways.
        """
        self._shorten_names()
        package = onnx()
        helper, kinds = package.helper, package.TensorProto
        ends = [
            [helper.make_tensor_value_info(name, kinds.FLOAT, self._sizes(name)) for name in names]
            for names in (self.network.inputs, self.network.outputs)
        ]
        stored = [
            package.numpy_helper.from_array(np.ascontiguousarray(array).reshape(array.shape), name)
            for name, array in self.initializers.items()
        ]
        graph = helper.make_graph(self.nodes, self.network.name, *ends, stored)
        return helper.make_model(
            graph,
            opset_imports=[helper.make_opsetid("", OPSET)],
            ir_version=IR_VERSION,
            producer_name="nnabla_dqa",
            producer_version=__version__,
        )

    def _shorten_names(self) -> None:
        """Leave out the module that NNabla puts before what lies within: ``@main/ReLU_out``."""
        kept = {*self.network.inputs, *self.network.outputs}
        taken = {*kept, *self.initializers, *(n for node in self.nodes for n in node.output)}
        short: Dict[str, str] = {}
        for name in (n for node in self.nodes for n in node.output if n not in kept):
            end = name.partition("/")[2]
            if name.startswith("@") and end and end not in taken:
                short[name] = end
                taken.add(end)
        for node in self.nodes:
            for names in (node.input, node.output):
                names[:] = [short.get(name, name) for name in names]
            if node.name.startswith("@"):
                node.name = node.name.partition("/")[2] or node.name

    def _sizes(self, name: str) -> List[Union[int, str]]:
        shape = self.shape(name)
        if shape.count(OPEN) > 1:
            raise ExportError(f"several axes of {name} go with the batch")
        is_batch = name in self.network.inputs or (shape and shape[0] == OPEN)
        return [(BATCH if is_batch else "") if size == OPEN else size for size in shape]


def refusal(network: Network, call: Call, reason: str) -> ExportError:
    """The error about a function that cannot be written."""
    return not_written(network, call, "ONNX", reason)


def flag(arguments: Mapping[str, Any], name: str) -> bool:
    """An argument that may be missing."""
    return bool(arguments.get(name, False))
