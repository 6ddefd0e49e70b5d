"""ONNX files in ONNX Runtime, beside NNabla, for the tests of this folder."""

from __future__ import annotations

from typing import Any, Dict, Mapping, Sequence

import nnabla as nn
import numpy as np
import onnx
import onnxruntime

from nnabla_dqa.export.deployed import Deployed


def session(model: Any, optimized: Any = None) -> onnxruntime.InferenceSession:
    """ONNX Runtime on the CPU, in silence, for a path or a model in memory.

    What it makes of the graph is written to ``optimized``.
    """
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    if optimized is not None:
        options.optimized_model_filepath = str(optimized)
    content = model.SerializeToString() if isinstance(model, onnx.ModelProto) else str(model)
    return onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])


def run(model: Any, feeds: Mapping[str, np.ndarray]) -> Dict[str, np.ndarray]:
    """The outputs by name."""
    engine = session(model)
    names = [output.name for output in engine.get_outputs()]
    return dict(zip(names, engine.run(names, dict(feeds))))


def unpacked(path: Any, deployed: Deployed) -> Dict[str, np.ndarray]:
    """The quantized weights as ONNX Runtime unpacks them."""
    model = onnx.load(str(path))
    del model.graph.output[:]
    for name, tensor in deployed.tensors.items():
        value = onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, tensor.shape)
        model.graph.output.append(value)
    feeds = {
        value.name: np.zeros([d.dim_value or 1 for d in value.type.tensor_type.shape.dim], "f")
        for value in model.graph.input
    }
    return run(model, feeds)


def in_nnabla(
    path: Any, network: str, feeds: Mapping[str, np.ndarray], outputs: Sequence[str]
) -> Dict[str, np.ndarray]:
    """What plain NNabla computes with a file."""
    size = max([1, *(len(array) for array in feeds.values())])
    graph = nn.graph_def.load(str(path), batch_size=size)
    graph.expand_loop_control()
    net = graph.networks[network]
    given = [nn.Variable.from_numpy_array(feeds[name]) for name in net.inputs]
    net(*given, batch_size=size)
    variables = [net.variables[name].variable_instance for name in outputs]
    nn.forward_all(variables)
    return {name: v.d for name, v in zip(outputs, variables)}


def difference(found: Mapping[str, np.ndarray], wanted: Mapping[str, np.ndarray]) -> float:
    """The largest difference of any output, relative to its largest value."""
    assert set(found) == set(wanted)
    worst = 0.0
    for name, array in wanted.items():
        assert found[name].shape == array.shape
        scale = max(float(np.abs(array).max()), 1e-30)
        worst = max(worst, float(np.abs(found[name] - array).max()) / scale)
    return worst
