"""Losses on a network of an NNP: its own, a named one, or the distance to a teacher."""

from __future__ import annotations

from typing import Any, Dict, NamedTuple, Tuple

import nnabla as nn
import nnabla.functions as F

from nnabla_dqa.nnp.inspect import producer
from nnabla_dqa.nnp.live import Built
from nnabla_dqa.quantization.graph_ops import Variable

_CLASSES = {
    "CategoricalCrossEntropy": "categorical_cross_entropy_param",
    "SoftmaxCrossEntropy": "softmax_cross_entropy_param",
}
_ACTIVATIONS = {"Softmax": "softmax", "LogSoftmax": "softmax", "Sigmoid": "sigmoid"}


class Logits(NamedTuple):
    """An output before its final activation: ``"softmax"``, ``"sigmoid"`` or ``""`` for none."""

    variable: Variable
    activation: str


def logits_of(built: Built, network: Any, output: str) -> Logits:
    """``output``, or what goes into it if it is a softmax or sigmoid."""
    function = producer(network, output)
    activation = _ACTIVATIONS.get(function.type, "") if function is not None else ""
    if not activation:
        return Logits(built.variables[output], "")
    assert function is not None
    return Logits(built.variables[function.input[0]], activation)


def class_counts(built: Built, network: Any) -> Dict[str, int]:
    """For each input that holds class numbers: how many classes its loss knows."""
    counts = {}
    for function in network.function:
        if function.type in _CLASSES and function.input[1] in built.inputs:
            axis = getattr(function, _CLASSES[function.type]).axis
            scores = built.variables[function.input[0]]
            counts[function.input[1]] = int(scores.shape[axis])
    return counts


def named_loss(kind: str, logits: Logits, output: Variable) -> Tuple[Variable, Variable]:
    """A scalar loss and the variable for its target.

    ``softmax_cross_entropy`` takes class numbers of shape (B, 1), with the
    classes on axis 1; the others take targets shaped like the output.
    Cross entropies are taken on what goes into a final softmax or sigmoid.

    Args:
        kind: ``"softmax_cross_entropy"``, ``"sigmoid_cross_entropy"``,
            ``"squared_error"`` or ``"huber"`` (delta = 1).
        logits: Of the output.
        output: The output itself.
    """
    if kind == "softmax_cross_entropy":
        scores = logits.variable if logits.activation in ("softmax", "") else output
        target = nn.Variable((scores.shape[0], 1, *scores.shape[2:]))
        return F.mean(F.softmax_cross_entropy(scores, target, axis=1)), target
    target = nn.Variable(output.shape)
    if kind == "sigmoid_cross_entropy":
        scores = logits.variable if logits.activation == "sigmoid" else output
        return _binary_cross_entropy(scores, target), target
    if kind == "huber":
        return F.mean(F.huber_loss(output, target, delta=1.0)), target
    return F.mean(F.squared_error(output, target)), target


def _binary_cross_entropy(scores: Variable, target: Variable) -> Variable:
    """``mean(log(1 + exp(z)) - z t)``; F.sigmoid_cross_entropy takes t for a whole number."""
    return F.mean(F.sub2(F.softplus(scores), F.mul2(scores, target)))


def distillation(student: Logits, teacher: Logits, temperature: float) -> Variable:
    """A scalar that is least where the student's output equals the teacher's.

    For a final softmax ``T^2 * CE(softmax(teacher / T), softmax(student / T))``
    (Hinton et al., arXiv 1503.02531), for a sigmoid the cross entropy with
    the teacher's probability, for anything else the squared error.
    """
    goal = teacher.variable
    if student.activation == "softmax":
        goal = F.softmax(F.mul_scalar(goal, 1 / temperature), axis=1)
        goal.need_grad = False
        scores = F.log_softmax(F.mul_scalar(student.variable, 1 / temperature), axis=1)
        entropy = F.mul_scalar(F.sum(F.mul2(goal, scores), axis=1), -(temperature**2))
        return F.mean(entropy)
    if student.activation == "sigmoid":
        goal = F.sigmoid(goal)
        goal.need_grad = False
        return _binary_cross_entropy(student.variable, goal)
    goal.need_grad = False
    return F.mean(F.squared_error(student.variable, goal))
