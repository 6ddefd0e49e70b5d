"""NNabla's functions as its C runtime reads them: axes count from the front, nothing is left out.

The runtime looks at the numbers of a file without checking them: a negative axis is another place
in memory, a missing input an address that is not there. What it would compute otherwise than NNabla
is refused.
"""

from __future__ import annotations

import dataclasses
from typing import Any, Callable, Dict, List, Mapping

import numpy as np

from nnabla_dqa.export.errors import ExportError
from nnabla_dqa.export.network import Call, Network, not_written
from nnabla_dqa.export.slices import cuts

_NAMES = (
    "Affine Convolution DepthwiseConvolution Deconvolution MaxPooling AveragePooling SumPooling",
    "Unpooling Sigmoid Swish Tanh ReLU LeakyReLU Softmax ELU SELU CReLU CELU PReLU",
    "BatchNormalization MeanSubtraction Sum Add2 Sub2 Mul2 Div2 Pow2 AddScalar MulScalar",
    "PowScalar RSubScalar RDivScalar RPowScalar Sign Minimum2 Maximum2 MinimumScalar",
    "MaximumScalar Abs Exp Log Identity Round Concatenate Split Stack Slice Pad",
    "Transpose Flip Shift Reshape MatrixDiag MatrixDiagPart BinaryTanh",
    "BinaryConnectAffine BinaryConnectConvolution BinaryWeightAffine BinaryWeightConvolution",
)
KNOWN = frozenset(name for line in _NAMES for name in line.split())
"""The functions of the C runtime that compute what NNabla computes."""
_WRONG = {
    "BatchMatmul": "the C runtime adds to what its output held before, and changes its inputs",
    "BinarySigmoid": "the C runtime gives 1 at zero, NNabla 0",
}


@dataclasses.dataclass
class RuntimeCall:
    """A function as the runtime is to read it.

    Attributes:
        type: NNabla's name of it.
        inputs: Names of variables and parameters.
        arguments: Of the function.
        arrays: Parameters that the network itself has not, by name.
    """

    type: str
    inputs: List[str]
    arguments: Dict[str, Any]
    arrays: Dict[str, np.ndarray]


def for_runtime(run: Network, call: Call) -> RuntimeCall:
    """A function of a network for the C runtime.

    Raises:
        ExportError: The runtime does not have the function, or computes something else; one
            line that names it.
    """
    if call.type not in KNOWN:
        reason = _WRONG.get(call.type, "NNabla's C runtime does not have it")
        raise not_written(run, call, "NNB", reason)
    made = RuntimeCall(call.type, list(call.inputs), dict(call.arguments), {})
    try:
        if made.arguments.get("channel_last"):
            raise ExportError("channel_last=True; the C runtime has channels first")
        _count_from_the_front(run, call, made.arguments)
        if call.type in _SPECIAL:
            _SPECIAL[call.type](run, call, made)
    except ExportError as error:
        raise not_written(run, call, "NNB", str(error)) from None
    return made


def _count_from_the_front(run: Network, call: Call, arguments: Dict[str, Any]) -> None:
    # The axis of a Stack is one of its output.
    name = call.outputs[0] if call.type == "Stack" else call.inputs[0]
    rank = len(run.shapes[name])
    for key in ("axis", "base_axis"):
        if key in arguments:
            arguments[key] = arguments[key] % rank
    if "axes" in arguments:
        axes = [axis % rank for axis in arguments["axes"]]
        # The runtime walks through those of a sum from first to last.
        arguments["axes"] = sorted(set(axes)) if call.type == "Sum" else axes


def _slice(run: Network, call: Call, made: RuntimeCall) -> None:
    found = cuts(call, run.shapes[call.inputs[0]])
    if any(cut.step < 0 for cut in found):
        raise ExportError("its step is negative, which the C runtime takes for 1")
    made.arguments.update(zip(("start", "stop", "step"), (list(part) for part in zip(*found))))


def _batch_normalization(run: Network, call: Call, made: RuntimeCall) -> None:
    if made.arguments.get("batch_stat"):
        raise ExportError("it normalizes by batch statistics, as in training")
    for place, (flag, name, value) in enumerate((("no_bias", "beta", 0), ("no_scale", "gamma", 1))):
        if made.arguments.get(flag):
            filled = f"{call.name}/{name}"
            made.arrays[filled] = np.full(run.shapes[call.inputs[-2]], value, np.float32)
            made.inputs.insert(1 + place, filled)
            made.arguments[flag] = False


def _binary_tanh(run: Network, call: Call, made: RuntimeCall) -> None:
    """The runtime's own is 1 at zero, NNabla's -1."""
    made.type, made.arguments = "Sign", {"alpha": -1.0}


def _mean_subtraction(run: Network, call: Call, made: RuntimeCall) -> None:
    if made.arguments.get("update_running_mean"):
        raise ExportError("it changes its mean, as in training")


def _max_pooling(run: Network, call: Call, made: RuntimeCall) -> None:
    pads, kernel = made.arguments["pad"], made.arguments["kernel"]
    if any(pad >= size for pad, size in zip(pads, kernel)):
        raise ExportError(f"pad {list(pads)} must be smaller than kernel {list(kernel)}")


def _binary(run: Network, call: Call, made: RuntimeCall) -> None:
    """Signs and factors of the weights, which NNabla computes anew and the runtime does not."""
    name = call.inputs[1]
    if name not in run.arrays:
        raise ExportError("its weights are computed by other functions")
    weights = run.arrays[name]
    signs = np.sign(weights)
    signs[weights == 0] = call.arguments["quantize_zero_to"]
    made.inputs[2] = f"{name}/signs"
    made.arrays[made.inputs[2]] = signs.astype(np.float32)
    if call.type.startswith("BinaryWeight"):
        rows = _rows(weights, is_matrix=call.type.endswith("Affine"))
        made.inputs[3] = f"{name}/level"
        made.arrays[made.inputs[3]] = np.abs(rows).mean(axis=1, dtype=np.float64)


def _rows(weights: np.ndarray, is_matrix: bool) -> np.ndarray:
    """A row of weights for each output."""
    if is_matrix:
        return weights.reshape(len(weights), -1).T
    return weights.reshape(len(weights), -1)


_SPECIAL: Mapping[str, Callable[[Network, Call, RuntimeCall], None]] = {
    "Slice": _slice,
    "BatchNormalization": _batch_normalization,
    "BinaryTanh": _binary_tanh,
    "MeanSubtraction": _mean_subtraction,
    "MaxPooling": _max_pooling,
    "BinaryConnectAffine": _binary,
    "BinaryConnectConvolution": _binary,
    "BinaryWeightAffine": _binary,
    "BinaryWeightConvolution": _binary,
}
