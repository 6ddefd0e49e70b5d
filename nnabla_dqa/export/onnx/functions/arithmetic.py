"""Sums, products, comparisons and extremes of arrays and numbers."""

from __future__ import annotations

from typing import Dict, Tuple

from nnabla_dqa.export.network import Call
from nnabla_dqa.export.onnx.functions.table import writes
from nnabla_dqa.export.onnx.graph import Graph

FLOAT = 1
_TWO: Dict[str, str] = {
    "Add2": "Add",
    "BcAdd2": "Add",
    "AddN": "Sum",
    "Sub2": "Sub",
    "Mul2": "Mul",
    "Div2": "Div",
    "Pow2": "Pow",
    "Maximum2": "Max",
    "Minimum2": "Min",
}
_SCALAR: Dict[str, Tuple[str, bool]] = {
    "AddScalar": ("Add", False),
    "MulScalar": ("Mul", False),
    "PowScalar": ("Pow", False),
    "RSubScalar": ("Sub", True),
    "RDivScalar": ("Div", True),
    "RPowScalar": ("Pow", True),
    "MaximumScalar": ("Max", False),
    "MinimumScalar": ("Min", False),
}
_COMPARED: Dict[str, Tuple[str, bool]] = {
    "Equal": ("Equal", False),
    "NotEqual": ("Equal", True),
    "Greater": ("Greater", False),
    "GreaterEqual": ("GreaterOrEqual", False),
    "Less": ("Less", False),
    "LessEqual": ("LessOrEqual", False),
}


@writes(*_TWO)
def arrays(graph: Graph, call: Call) -> None:
    """Arrays, which broadcast."""
    graph.node(_TWO[call.type], call.inputs, call.outputs[0])


@writes("MulN")
def product(graph: Graph, call: Call) -> None:
    """The product of several arrays."""
    total = call.inputs[0]
    for i, name in enumerate(call.inputs[1:]):
        is_last = i == len(call.inputs) - 2
        total = graph.node("Mul", [total, name], call.outputs[0] if is_last else None)
    if len(call.inputs) == 1:
        graph.node("Identity", [total], call.outputs[0])


@writes(*_SCALAR)
def scalar(graph: Graph, call: Call) -> None:
    """An array and a number."""
    kind, is_reversed = _SCALAR[call.type]
    inputs = [call.inputs[0], graph.constant(float(call.arguments["val"]))]
    graph.node(kind, inputs[::-1] if is_reversed else inputs, call.outputs[0])


@writes(*_COMPARED, *(f"{name}Scalar" for name in _COMPARED))
def comparison(graph: Graph, call: Call) -> None:
    """1 where it holds, else 0."""
    kind, is_negated = _COMPARED[call.type.replace("Scalar", "")]
    inputs = list(call.inputs)
    if call.type.endswith("Scalar"):
        inputs.append(graph.constant(float(call.arguments["val"])))
    holds = graph.node(kind, inputs)
    if is_negated:
        holds = graph.node("Not", [holds])
    graph.node("Cast", [holds], call.outputs[0], to=FLOAT)


@writes("Where")
def where(graph: Graph, call: Call) -> None:
    """One of two arrays, by a condition that broadcasts over the axes behind its own."""
    condition, yes, no = call.inputs
    missing = len(graph.shape(yes)) - len(graph.shape(condition))
    holds = graph.node("Cast", [condition], to=9)
    if missing > 0:
        rank = len(graph.shape(yes))
        holds = graph.node("Unsqueeze", [holds, graph.axes(*range(rank - missing, rank))])
    graph.node("Where", [holds, yes, no], call.outputs[0])
