"""Small networks as NNP files, and running files in plain NNabla, for the tests of this folder."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, Dict, Iterable, List, Mapping, Optional, Sequence, Tuple

import nnabla as nn
import numpy as np
import pytest
from nnabla.utils import nnabla_pb2

from nnabla_dqa.nnp.expand import state_path
from nnabla_dqa.nnp.file import NetworkFile
from nnabla_dqa.nnp_format.archive import Archive
from nnabla_dqa.nnp_format.parameters import Parameter

SHARED = Path(__file__).resolve().parents[3] / "shared" / "nnp"
ARGUMENTS = {
    "Affine": "affine_param",
    "Convolution": "convolution_param",
    "Deconvolution": "deconvolution_param",
    "DepthwiseConvolution": "depthwise_convolution_param",
    "DepthwiseDeconvolution": "depthwise_deconvolution_param",
    "BatchNormalization": "batch_normalization_param",
    "Concatenate": "concatenate_param",
    "Transpose": "transpose_param",
    "Add2": "add2_param",
    "ReLU": "relu_param",
    "BatchMatmul": "batch_matmul_param",
    "Softmax": "softmax_param",
}
WINDOW = {"base_axis": 1, "pad": (1, 1), "stride": (1, 1), "dilation": (1, 1)}


def shared_files(*prefixes: str) -> List[Any]:
    """The NNP files of others, as parameters of a test; skipped where they are missing."""
    found = sorted(p for p in SHARED.glob("*.nnp") if not prefixes or p.name[:2] in prefixes)
    if not found:
        return [pytest.param(None, marks=pytest.mark.skip(reason=f"no NNP files in {SHARED}"))]
    return [pytest.param(path, id=path.name[:2]) for path in found]


class Net:
    """An NNP being put together; functions are added to the network begun last.

    ``shapes`` holds the shape of every variable without its batch axis.
    Parameters that exist already are used again: shared weights.
    """

    def __init__(self, name: str = "net", seed: int = 0, batch_size: int = 2) -> None:
        self.definition = nnabla_pb2.NNablaProtoBuf()
        self.parameters: Dict[str, Parameter] = {}
        self.others: Dict[str, bytes] = {}
        self.rng = np.random.RandomState(seed)
        self.batch_size = batch_size
        self.begin(name)

    def begin(self, name: str) -> None:
        self.network = self.definition.network.add(name=name, batch_size=self.batch_size)
        self.shapes: Dict[str, Tuple[int, ...]] = {}

    def _declare(self, name: str, shape: Sequence[int], kind: str) -> str:
        if all(v.name != name for v in self.network.variable):
            self.network.variable.add(name=name, type=kind).shape.dim.extend(shape)
        return name

    def input(self, name: str, *shape: int) -> str:
        self.shapes[name] = shape
        return self._declare(name, (-1, *shape), "Buffer")

    def parameter(self, name: str, *shape: int, scale: float = 0.5, shift: float = 0.0) -> str:
        if name not in self.parameters:
            array = (self.rng.randn(*shape) * scale + shift).astype(np.float32)
            self.parameters[name] = Parameter(array)
        return self._declare(name, self.parameters[name].array.shape, "Parameter")

    def call(
        self,
        kind: str,
        inputs: Iterable[str],
        shape: Sequence[int],
        name: str = "",
        **arguments: Any,
    ) -> str:
        name = name or f"{kind}_{len(self.network.function)}"
        output = f"{name}_out"
        function = self.network.function.add(
            name=name, type=kind, input=list(inputs), output=[output]
        )
        for key, value in arguments.items():
            field = getattr(function, ARGUMENTS[kind])
            if key in ("pad", "stride", "dilation"):
                getattr(field, key).dim.extend(value)
            elif isinstance(value, tuple):
                getattr(field, key).extend(value)
            else:
                setattr(field, key, value)
        self.shapes[output] = tuple(shape)
        return self._declare(output, (-1, *shape), "Buffer")

    def _layer(
        self,
        kind: str,
        x: str,
        weight: str,
        w: Sequence[int],
        out: Sequence[int],
        bias: int,
        **more: Any,
    ) -> str:
        stem = weight[:-1] if weight.endswith("/W") else f"{weight}_"
        inputs = [x, self.parameter(weight, *w)]
        name = more.pop("name", "")
        if bias:
            inputs.append(self.parameter(f"{stem}b", bias))
        return self.call(kind, inputs, out, name, **more)

    def affine(self, x: str, out: int, weight: str, bias: bool = True, name: str = "") -> str:
        size = int(np.prod(self.shapes[x]))
        return self._layer(
            "Affine", x, weight, (size, out), (out,), out * bias, base_axis=1, name=name
        )

    def conv(
        self, x: str, out: int, weight: str, bias: bool = True, group: int = 1, name: str = ""
    ) -> str:
        channels, *size = self.shapes[x]
        w = (out, channels // group, 3, 3)
        arguments = {**WINDOW, "group": group, "name": name}
        return self._layer("Convolution", x, weight, w, (out, *size), out * bias, **arguments)

    def deconv(self, x: str, out: int, weight: str, bias: bool = True, group: int = 1) -> str:
        channels, *size = self.shapes[x]
        w = (channels, out // group, 3, 3)
        return self._layer(
            "Deconvolution", x, weight, w, (out, *size), out * bias, **WINDOW, group=group
        )

    def depthwise(self, x: str, weight: str, bias: bool = True, up: bool = False) -> str:
        channels = self.shapes[x][0]
        kind, extra = (
            ("DepthwiseDeconvolution", {"divisor": 1})
            if up
            else ("DepthwiseConvolution", {"multiplier": 1})
        )
        w = (channels, 3, 3)
        return self._layer(kind, x, weight, w, self.shapes[x], channels * bias, **WINDOW, **extra)

    def embed(self, x: str, classes: int, size: int, weight: str) -> str:
        return self._layer("Embed", x, weight, (classes, size), (*self.shapes[x], size), 0)

    def normalize(self, x: str, scope: str, batch_stat: bool = False, name: str = "") -> str:
        channels = self.shapes[x][0]
        shape = (1, channels, *(1 for _ in self.shapes[x][1:]))
        inputs = [x, *(self.parameter(f"{scope}/{p}", *shape) for p in ("beta", "gamma", "mean"))]
        inputs.append(f"{scope}/var")
        if f"{scope}/var" not in self.parameters:
            array = self.rng.uniform(0.3, 2.0, shape).astype(np.float32)
            self.parameters[f"{scope}/var"] = Parameter(array)
        self.parameter(f"{scope}/var")
        arguments = {"axes": (1,), "decay_rate": 0.9, "eps": 1e-4, "batch_stat": batch_stat}
        return self.call("BatchNormalization", inputs, self.shapes[x], name, **arguments)

    def executor(self, network: str, inputs: Sequence[str], outputs: Sequence[str]) -> None:
        executor = self.definition.executor.add(name=f"run_{network}", network_name=network)
        for name in inputs:
            executor.data_variable.add(variable_name=name, data_name=name)
        for name in outputs:
            executor.output_variable.add(variable_name=name, data_name=name)
        for name in self.parameters:
            executor.parameter_variable.add(variable_name=name)

    def archive(self, path: Path, metadata: Optional[Dict[str, Any]] = None) -> Archive:
        definition = nnabla_pb2.NNablaProtoBuf()
        definition.CopyFrom(self.definition)
        return Archive(path, definition, dict(self.parameters), metadata, dict(self.others))

    def save(self, path: Path, metadata: Optional[Dict[str, Any]] = None) -> Path:
        self.archive(path, metadata).write(path)
        return path


def small(seed: int = 0) -> Net:
    """Convolution, normalization, ReLU and affine; an executor called ``run_net``."""
    net = Net(seed=seed)
    h = net.conv(net.input("x", 2, 4, 4), 3, "c/conv/W", bias=False, name="Conv")
    h = net.normalize(h, "bn", name="BN")
    h = net.call("ReLU", [h], net.shapes[h])
    y = net.affine(h, 4, "fc/affine/W", name="Fc")
    net.executor("net", ["x"], [y])
    return net


def leaves(network: Any) -> List[str]:
    """The variables that a network computes and does not use itself."""
    used = {name for function in network.function for name in function.input}
    return [n for function in network.function for n in function.output if n not in used]


def sources(network: Any) -> Dict[str, Tuple[int, ...]]:
    """The inputs of a network and their shapes."""
    made = {name for function in network.function for name in function.output}
    used = {name for function in network.function for name in function.input}
    return {
        v.name: tuple(v.shape.dim)
        for v in network.variable
        if v.type != "Parameter" and v.name in used - made
    }


def samples(network: Any, batch_size: int = 2, seed: int = 0) -> Dict[str, np.ndarray]:
    """Random inputs; what is called ``..._T`` or ``index...`` are class numbers."""
    rng = np.random.RandomState(seed)
    values = {}
    for name, shape in sources(network).items():
        shape = tuple(d if d >= 0 else batch_size for d in shape)
        whole = name.endswith("_T") or name.startswith("index")
        array = rng.randint(0, 2, shape) if whole else rng.randn(*shape)
        values[name] = array.astype(np.float32)
    return values


def outputs(
    path: Path, network: str, values: Mapping[str, np.ndarray], batch_size: int = 2
) -> Dict[str, np.ndarray]:
    """What a network of a file computes in NNabla's own loader, by variable."""
    nn.clear_parameters()
    nn.seed(0)
    graph = nn.graph_def.load(str(path), batch_size=batch_size)
    net = graph.networks[network]
    proto = next(n for n in Archive.read(path).definition.network if n.name == network)
    with nn.auto_forward(False):
        net(*[nn.Variable.from_numpy_array(values[n]) for n in net.inputs], batch_size=batch_size)
    found = {name: net.variables[name].variable_instance for name in leaves(proto)}
    nn.forward_all(list(found.values()))
    return {name: v.d.copy() for name, v in found.items()}


def assert_equal_outputs(first: Path, second: Path, batch_size: int = 2) -> None:
    """All networks of ``first`` compute the same in ``second``, bit for bit."""
    for network in Archive.read(first).definition.network:
        values = samples(network, batch_size)
        expected = outputs(first, network.name, values, batch_size)
        found = outputs(second, network.name, values, batch_size)
        assert expected
        assert list(expected) == list(found)
        for name, array in expected.items():
            np.testing.assert_array_equal(found[name], array, err_msg=f"{network.name} {name}")


def train(source: Path, target: Path, seed: int = 0) -> NetworkFile:
    """What a training would leave: other weights, attention and temperature, and its note."""
    file = NetworkFile.read(source)
    rng = np.random.RandomState(seed)
    parameters = dict(file.archive.parameters)
    for layer in file.quantized:
        for name, (array, need_grad) in file.archive.parameters.items():
            state, _, entry = name.rpartition("/")
            if name == layer.weight:
                value = array + 0.01 * rng.randn(*array.shape)
            elif state == state_path(layer.weight) and entry != "hard":
                value = array * rng.uniform(0.2, 1.0, array.shape)
            else:
                continue
            parameters[name] = Parameter(value.astype(np.float32), need_grad)
    result = file.with_parameters(parameters)
    notes = {**(file.archive.metadata or {}), "training": {}}
    result = dataclasses.replace(
        result, archive=dataclasses.replace(result.archive, metadata=notes)
    )
    result.save(target)
    return result


def computed(built, values):
    """What a built network computes for ``values``, by variable."""
    for name, variable in built.inputs.items():
        variable.d = values[name]
    nn.forward_all(list(built.outputs.values()))
    return {name: v.d.copy() for name, v in built.outputs.items()}


def assert_same(found, expected):
    """Equal names and equal arrays, bit for bit."""
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        np.testing.assert_array_equal(found[name], array, err_msg=name)


def assert_close(found, expected):
    """Equal names, and arrays that differ by float32's rounding."""
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        size = np.abs(array).max()
        np.testing.assert_allclose(found[name], array, rtol=0, atol=1e-4 * size, err_msg=name)
