"""Functions of each element: activations, rounding, and those that ONNX names as NNabla does."""

from __future__ import annotations

import math
from typing import Any, Dict, Optional

from nnabla_dqa.export.network import Call
from nnabla_dqa.export.onnx.functions.arithmetic import FLOAT
from nnabla_dqa.export.onnx.functions.table import writes
from nnabla_dqa.export.onnx.graph import Graph, refusal

_SAME: Dict[str, str] = {
    "Abs": "Abs",
    "ACos": "Acos",
    "ACosh": "Acosh",
    "ASin": "Asin",
    "ASinh": "Asinh",
    "ATan": "Atan",
    "ATanh": "Atanh",
    "Ceil": "Ceil",
    "Cos": "Cos",
    "Cosh": "Cosh",
    "Erf": "Erf",
    "Exp": "Exp",
    "Floor": "Floor",
    "Identity": "Identity",
    "Log": "Log",
    "ReLU": "Relu",
    "Sigmoid": "Sigmoid",
    "Sin": "Sin",
    "Sinh": "Sinh",
    "SoftSign": "Softsign",
    "Tan": "Tan",
    "Tanh": "Tanh",
    "Unlink": "Identity",
}


@writes(*_SAME)
def same(graph: Graph, call: Call) -> None:
    """What ONNX has under another name."""
    graph.node(_SAME[call.type], [call.inputs[0]], call.outputs[0])


@writes("LeakyReLU", "ELU")
def with_slope(graph: Graph, call: Call) -> None:
    """Linear above zero, with ``alpha`` below."""
    kind = {"LeakyReLU": "LeakyRelu", "ELU": "Elu"}[call.type]
    alpha = float(call.arguments["alpha"])
    graph.node(kind, [call.inputs[0]], call.outputs[0], alpha=alpha)


@writes("SELU")
def selu(graph: Graph, call: Call) -> None:
    """The scaled ELU."""
    arguments = call.arguments
    alpha, gamma = float(arguments["alpha"]), float(arguments["scale"])
    graph.node("Selu", [call.inputs[0]], call.outputs[0], alpha=alpha, gamma=gamma)


@writes("PReLU")
def prelu(graph: Graph, call: Call) -> None:
    """A learned slope below zero, for all or for each channel."""
    x, slope = call.inputs
    shape = graph.shape(x)
    if math.prod(graph.shape(slope)) > 1:
        behind = len(shape) - call.arguments["base_axis"] % len(shape) - 1
        slope = graph.reshape(slope, (*graph.shape(slope), *[1] * behind))
    graph.node("PRelu", [x, slope], call.outputs[0])


@writes("Softmax", "LogSoftmax")
def softmax(graph: Graph, call: Call) -> None:
    """Along one axis."""
    axis = call.arguments["axis"]
    graph.node(call.type, [call.inputs[0]], call.outputs[0], axis=axis)


@writes("SoftPlus")
def softplus(graph: Graph, call: Call) -> None:
    """``log(1 + exp(beta x)) / beta``."""
    x, beta = call.inputs[0], float(call.arguments["beta"])
    if beta == 1:
        graph.node("Softplus", [x], call.outputs[0])
        return
    y = graph.node("Softplus", [graph.node("Mul", [x, graph.constant(beta)])])
    graph.node("Div", [y, graph.constant(beta)], call.outputs[0])


@writes("Swish")
def swish(graph: Graph, call: Call) -> None:
    """``x sigmoid(x)``."""
    x = call.inputs[0]
    graph.node("Mul", [x, graph.node("Sigmoid", [x])], call.outputs[0])


@writes("Mish")
def mish(graph: Graph, call: Call) -> None:
    """``x tanh(softplus(x))``."""
    x = call.inputs[0]
    graph.node("Mul", [x, graph.node("Tanh", [graph.node("Softplus", [x])])], call.outputs[0])


@writes("GELU")
def gelu(graph: Graph, call: Call) -> None:
    """The approximation by tanh, as NNabla computes it."""
    x = call.inputs[0]
    cube = graph.node("Mul", [graph.node("Mul", [x, x]), x])
    inner = graph.node("Add", [x, graph.node("Mul", [cube, graph.constant(0.044715)])])
    inner = graph.node("Mul", [inner, graph.constant(math.sqrt(2 / math.pi))])
    above = graph.node("Add", [graph.node("Tanh", [inner]), graph.constant(1.0)])
    half = graph.node("Mul", [x, graph.constant(0.5)])
    graph.node("Mul", [half, above], call.outputs[0])


@writes("LogSigmoid")
def log_sigmoid(graph: Graph, call: Call) -> None:
    """``-softplus(-x)``, which does not overflow."""
    below = graph.node("Softplus", [graph.node("Neg", [call.inputs[0]])])
    graph.node("Neg", [below], call.outputs[0])


@writes("TanhShrink")
def tanh_shrink(graph: Graph, call: Call) -> None:
    """``x - tanh(x)``."""
    x = call.inputs[0]
    graph.node("Sub", [x, graph.node("Tanh", [x])], call.outputs[0])


@writes("ReLU6", "HardTanh")
def clipped(graph: Graph, call: Call) -> None:
    """Clipped to a range."""
    low, high = {"ReLU6": (0.0, 6.0), "HardTanh": (-1.0, 1.0)}[call.type]
    clip(graph, call.inputs[0], low, high, call.outputs[0])


@writes("HardSigmoid")
def hard_sigmoid(graph: Graph, call: Call) -> None:
    """``clip(0.2 x + 0.5, 0, 1)``."""
    graph.node("HardSigmoid", [call.inputs[0]], call.outputs[0], alpha=0.2, beta=0.5)


@writes("CReLU", "CELU")
def of_both_signs(graph: Graph, call: Call) -> None:
    """ReLU or ELU of ``x`` and of ``-x``, side by side."""
    x = call.inputs[0]
    more: Dict[str, Any] = {"alpha": float(call.arguments["alpha"])} if call.type == "CELU" else {}
    kind = {"CReLU": "Relu", "CELU": "Elu"}[call.type]
    sides = [graph.node(kind, [v], **more) for v in (x, graph.node("Neg", [x]))]
    graph.node("Concat", sides, call.outputs[0], axis=call.arguments["axis"])


@writes("Sign")
def sign(graph: Graph, call: Call) -> None:
    """The sign, with ``alpha`` at zero."""
    x, alpha = call.inputs[0], float(call.arguments["alpha"])
    zero = graph.constant(0.0)
    if alpha == 0:
        graph.node("Sign", [x], call.outputs[0])
    elif abs(alpha) == 1:
        kind = "Less" if alpha > 0 else "Greater"
        low, high = (-1.0, 1.0) if alpha > 0 else (1.0, -1.0)
        cases = [graph.constant(low), graph.constant(high)]
        graph.node("Where", [graph.node(kind, [x, zero]), *cases], call.outputs[0])
    else:
        is_zero = graph.node("Equal", [x, zero])
        cases = [graph.constant(alpha), graph.node("Sign", [x])]
        graph.node("Where", [is_zero, *cases], call.outputs[0])


@writes("Round")
def round_away(graph: Graph, call: Call) -> None:
    """To the nearest whole number, halves away from zero (ONNX's Round takes the even one)."""
    x = call.inputs[0]
    size = graph.node("Abs", [x])
    whole = graph.node("Floor", [size])
    rest = graph.node("Sub", [size, whole])
    up = graph.node("Not", [graph.node("Less", [rest, graph.constant(0.5)])])
    whole = graph.node("Add", [whole, graph.node("Cast", [up], to=FLOAT)])
    graph.node("Mul", [whole, graph.node("Sign", [x])], call.outputs[0])


@writes("Dropout")
def dropout(graph: Graph, call: Call) -> None:
    """Nothing, if nothing is dropped; NNabla drops in any network that holds it."""
    if call.arguments["p"] != 0:
        raise refusal(graph.network, call, "its outputs are random; build the network without it")
    graph.node("Identity", [call.inputs[0]], call.outputs[0])


def clip(graph: Graph, x: str, low: float, high: float, output: Optional[str] = None) -> str:
    """``x`` within a range."""
    return graph.node("Clip", [x, graph.constant(low), graph.constant(high)], output)
