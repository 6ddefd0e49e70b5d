"""Other forms of packed weights in ONNX, beside the one that is written: bytes, loading, one run.

    python benchmarks/onnx_forms.py      # needs the extra 'onnx'; prints a table

A convolution of 256x256x3x3 weights of 2 bits on 16x16 pixels, and an affine layer of 1024x1024
weights of 4 bits: by Div and Mod (written), by BitShift and BitwiseAnd, the same operators as a
local function, uint4 tensors with DequantizeLinear, and ONNX Runtime's own MatMulNBits.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any, Callable, Dict, List, Tuple

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto as Kinds
from onnx import helper, numpy_helper

from benchmarks.bench.measuring import clock, summary, take_turns
from benchmarks.onnx_session import session
from nnabla_dqa._util.tables import format_table

Arrays = Dict[str, np.ndarray]
CONV, AFFINE = (256, 256, 3, 3), (1024, 1024)
PIXELS, RUNS, LOADS = 16, 30, 7
SCALE, OFFSET = np.float32(0.02), np.float32(-0.03)


def packed(codes: np.ndarray, bits: int) -> np.ndarray:
    """Codes of 2 or 4 bits in bytes, the first one lowest."""
    count = 8 // bits
    shifted = codes.reshape(-1, count) << (bits * np.arange(count))
    return shifted.sum(axis=1).astype(np.uint8)


def by_division(bits: int) -> Tuple[List[Any], Arrays]:
    """``codes`` from ``packed`` as it is written, from opset 13 on."""
    divisors = (1 << (bits * np.arange(8 // bits))).astype(np.int32)
    nodes = [
        helper.make_node("Cast", ["packed"], ["whole"], to=Kinds.INT32),
        helper.make_node("Unsqueeze", ["whole", "one"], ["column"]),
        helper.make_node("Div", ["column", "divisors"], ["divided"]),
        helper.make_node("Mod", ["divided", "base"], ["codes"]),
    ]
    return nodes, {"one": np.array([1]), "divisors": divisors, "base": np.int32(1 << bits)}


def by_shifts(bits: int) -> Tuple[List[Any], Arrays]:
    """The same by operators on bits, from opset 18 on."""
    nodes = [
        helper.make_node("Unsqueeze", ["packed", "one"], ["column"]),
        helper.make_node("BitShift", ["column", "shifts"], ["shifted"], direction="RIGHT"),
        helper.make_node("BitwiseAnd", ["shifted", "mask"], ["codes"]),
    ]
    shifts = (bits * np.arange(8 // bits)).astype(np.uint8)
    return nodes, {"one": np.array([1]), "shifts": shifts, "mask": np.uint8((1 << bits) - 1)}


def model(form: str, layer: str) -> Any:
    """A layer with packed weights in one of the forms."""
    bits, shape = (2, CONV) if layer == "convolution" else (4, AFFINE)
    codes = np.random.RandomState(0).randint(0, 1 << bits, shape)
    weights = (codes.astype(np.float32) * SCALE + OFFSET).astype(np.float32)
    arrays: Arrays = {"scale": SCALE, "offset": OFFSET, "shape": np.array(shape)}
    nodes: List[Any] = []
    functions: List[Any] = []
    opset, extra = 13, []
    if form == "float":
        arrays = {"W": weights}
    elif form == "uint4":
        opset = 21
        return _uint4(codes, layer)
    elif form == "MatMulNBits":
        return _matmul_nbits(codes)
    else:
        unpack, constants = (by_shifts if form == "shifts" else by_division)(bits)
        opset = 18 if form == "shifts" else 13
        unpack += [
            helper.make_node("Cast", ["codes"], ["numbers"], to=Kinds.FLOAT),
            helper.make_node("Mul", ["numbers", "scale"], ["scaled"]),
            helper.make_node("Add", ["scaled", "offset"], ["flat"]),
            helper.make_node("Reshape", ["flat", "shape"], ["W"]),
        ]
        arrays |= {"packed": packed(codes, bits), **constants}
        if form == "function":
            names = list(arrays)
            sets = [helper.make_opsetid("", opset)]
            functions = [helper.make_function("dqa", "Unpack", names, ["W"], unpack, sets)]
            unpack = [helper.make_node("Unpack", names, ["W"], domain="dqa")]
            extra = [helper.make_opsetid("dqa", 1)]
        nodes = unpack
    return _finished([*nodes, _layer(layer)], arrays, layer, opset, extra, functions)


def _layer(layer: str) -> Any:
    if layer == "convolution":
        return helper.make_node("Conv", ["x", "W"], ["y"], pads=[1] * 4, kernel_shape=[3, 3])
    return helper.make_node("Gemm", ["x", "W"], ["y"])


def _uint4(codes: np.ndarray, layer: str) -> Any:
    """Codes as a tensor of 4-bit numbers; there are none of 2 bits in onnx 1.17."""
    flat = codes.ravel()
    stored = onnx.TensorProto(
        name="codes", data_type=Kinds.UINT4, raw_data=packed(flat, 4).tobytes()
    )
    stored.dims.extend(codes.shape)
    nodes = [
        helper.make_node("DequantizeLinear", ["codes", "scale"], ["scaled"]),
        helper.make_node("Add", ["scaled", "offset"], ["W"]),
        _layer(layer),
    ]
    made = _finished(nodes, {"scale": SCALE, "offset": OFFSET}, layer, 21, [], [])
    made.graph.initializer.append(stored)
    return made


def _matmul_nbits(codes: np.ndarray) -> Any:
    """Blocks of 128 weights; its zero point is a whole number, so the offset is left out here."""
    k, n = codes.shape
    blocks = packed(codes.T.reshape(-1), 4).reshape(n, k // 128, 64)
    arrays = {"B": blocks, "scales": np.full(n * k // 128, SCALE, np.float32)}
    node = helper.make_node(
        "MatMulNBits",
        ["x", "B", "scales"],
        ["y"],
        domain="com.microsoft",
        K=k,
        N=n,
        bits=4,
        block_size=128,
    )
    extra = [helper.make_opsetid("com.microsoft", 1)]
    return _finished([node], arrays, "affine", 13, extra, [])


def _finished(
    nodes: List[Any], arrays: Arrays, layer: str, opset: int, extra: List[Any], functions: List[Any]
) -> Any:
    shape = [1, CONV[1], PIXELS, PIXELS] if layer == "convolution" else [1, AFFINE[0]]
    stored = [numpy_helper.from_array(np.asarray(v), name) for name, v in arrays.items()]
    ends = [
        [helper.make_tensor_value_info("x", Kinds.FLOAT, shape)],
        [helper.make_tensor_value_info("y", Kinds.FLOAT, None)],
    ]
    graph = helper.make_graph(nodes, "net", *ends, stored)
    sets = [helper.make_opsetid("", opset), *extra]
    return helper.make_model(
        graph, opset_imports=sets, ir_version=10 if opset > 20 else 8, functions=functions
    )


FORMS = {
    "convolution": ("float", "division", "shifts", "function", "uint4"),
    "affine": ("float", "division", "shifts", "function", "uint4", "MatMulNBits"),
}


def main() -> None:
    rows: List[Tuple[str, ...]] = [("layer", "form", "bytes", "loading ms", "run ms")]
    for layer, forms in FORMS.items():
        with tempfile.TemporaryDirectory() as folder:
            paths = {form: Path(folder) / f"{form}.onnx" for form in forms}
            for form, path in paths.items():
                onnx.save(model(form, layer), str(path))
            rows += measured(layer, paths)
    print(f"onnxruntime {onnxruntime.__version__}, onnx {onnx.__version__}")
    print(format_table(rows))


def measured(layer: str, paths: Dict[str, Path]) -> List[Tuple[str, ...]]:
    """A row for each form."""
    shape = (1, CONV[1], PIXELS, PIXELS) if layer == "convolution" else (1, AFFINE[0])
    x = np.random.RandomState(1).rand(*shape).astype(np.float32)
    loads: Dict[str, Callable[[], float]] = {
        form: lambda path=path: clock(lambda: session(path)) for form, path in paths.items()
    }
    sessions = {form: session(path) for form, path in paths.items()}
    runs: Dict[str, Callable[[], float]] = {
        form: lambda loaded=loaded: clock(lambda: loaded.run(None, {"x": x}))
        for form, loaded in sessions.items()
    }
    loading, running = take_turns(loads, LOADS), take_turns(runs, RUNS, 3)
    return [
        (
            layer,
            form,
            f"{path.stat().st_size:,}",
            f"{summary(loading[form])['median']:.1f}",
            f"{summary(running[form])['median']:.2f}",
        )
        for form, path in paths.items()
    ]


if __name__ == "__main__":
    main()
