"""Losses on a network of an NNP: its own, a named one, or the distance to a teacher."""

from __future__ import annotations

import abc
from functools import reduce
from pathlib import Path
from typing import Any, Dict, List, Mapping, NamedTuple, Optional, Sequence, Tuple

import nnabla as nn
import nnabla.functions as F

from nnabla_dqa.nnp.inspect import predictions, producer
from nnabla_dqa.nnp.live import Built
from nnabla_dqa.nnp_format.members import NNPError
from nnabla_dqa.quantization.graph_ops import Variable
from nnabla_dqa.recipes.recipe import Recipe

_CLASSES = {
    "CategoricalCrossEntropy": "categorical_cross_entropy_param",
    "SoftmaxCrossEntropy": "softmax_cross_entropy_param",
}
_IMPLIED = {"SoftmaxCrossEntropy": "softmax", "SigmoidCrossEntropy": "sigmoid"}
"""Losses that apply an activation themselves."""
_ACTIVATIONS = {"Softmax": "softmax", "LogSoftmax": "softmax", "Sigmoid": "sigmoid"}
_AXES = {
    "Softmax": "softmax_param",
    "LogSoftmax": "log_softmax_param",
    "SoftmaxCrossEntropy": "softmax_cross_entropy_param",
}
"""Where a function says over which axis its softmax is."""


class Logits(NamedTuple):
    """An output before its final activation: ``"softmax"``, ``"sigmoid"`` or ``""`` for none.

    A softmax is over ``axis``, which counts from the front.
    """

    variable: Variable
    activation: str
    axis: int = 1


class Teacher(abc.ABC):
    """A float network that another one learns from, and that does not learn itself.

    Attributes:
        path: Its file.
        checksum: Of its parameters.
    """

    path: Path
    checksum: str

    @abc.abstractmethod
    def outputs(
        self, student: Mapping[str, Logits], inputs: Mapping[str, Variable], batch_size: int
    ) -> List[Logits]:
        """What it says of ``inputs``, for each output of the student, normalized by its own
        running statistics and without dropout.

        Raises:
            NNPError: It has other inputs or outputs.
        """


def logits_of(built: Built, network: Any, output: str) -> Logits:
    """``output``, or what goes into it if it is a softmax or sigmoid."""
    function = producer(network, output)
    activation = _ACTIVATIONS.get(function.type, "") if function is not None else ""
    if not activation:
        return Logits(built.variables[output], "")
    assert function is not None
    return _before(built, function, activation)


def _before(built: Built, function: Any, activation: str) -> Logits:
    """What goes into ``function``."""
    x = built.variables[function.input[0]]
    axis = getattr(function, _AXES[function.type]).axis % x.ndim if function.type in _AXES else 1
    return Logits(x, activation, axis)


def taught_outputs(built: Built, network: Any, outputs: Sequence[str]) -> Dict[str, Logits]:
    """What of a network with losses of its own is compared with a teacher.

    Args:
        built: The network.
        network: Its definition.
        outputs: Those of the network that is run, if this one computes them too; otherwise
            what its losses compare with targets.
    """
    made = {name for function in network.function for name in function.output}
    names = list(outputs) if made.issuperset(outputs) else predictions(network)
    losses = [f for f in network.function if f.type in _IMPLIED]
    implied = {f.input[0]: _before(built, f, _IMPLIED[f.type]) for f in losses}
    found = {name: logits_of(built, network, name) for name in names}
    return {k: own if own.activation else implied.get(k, own) for k, own in found.items()}


def class_counts(built: Built, network: Any) -> Dict[str, int]:
    """For each input that holds class numbers: how many classes its loss knows."""
    counts = {}
    for function in network.function:
        if function.type in _CLASSES and function.input[1] in built.inputs:
            axis = getattr(function, _CLASSES[function.type]).axis
            scores = built.variables[function.input[0]]
            counts[function.input[1]] = int(scores.shape[axis])
    return counts


def scored(kind: str, logits: Logits, output: Variable) -> Logits:
    """What :func:`named_loss` is taken on, before the activation that the loss implies."""
    implied = {"softmax_cross_entropy": "softmax", "sigmoid_cross_entropy": "sigmoid"}.get(kind, "")
    # A softmax over nothing but logits may be missing; that of a sigmoid's output is one of it.
    inside = logits.activation == implied or (implied == "softmax" and not logits.activation)
    return Logits(logits.variable if implied and inside else output, implied)


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
    scores = scored(kind, logits, output).variable
    if kind == "softmax_cross_entropy":
        target = nn.Variable((scores.shape[0], 1, *scores.shape[2:]))
        return F.mean(F.softmax_cross_entropy(scores, target, axis=1)), target
    target = nn.Variable(output.shape)
    if kind == "sigmoid_cross_entropy":
        return _binary_cross_entropy(scores, target), target
    if kind == "huber":
        return F.mean(F.huber_loss(output, target, delta=1.0)), target
    return F.mean(F.squared_error(output, target)), target


def _binary_cross_entropy(scores: Variable, target: Variable) -> Variable:
    """``mean(log(1 + exp(z)) - z t)``; F.sigmoid_cross_entropy takes t for a whole number."""
    return F.mean(F.sub2(F.softplus(scores), F.mul2(scores, target)))


def distillation(student: Logits, teacher: Logits, temperature: float) -> Variable:
    """A scalar that is 0 where the student's output equals the teacher's, and above elsewhere.

    For a final softmax ``T^2 * KL(softmax(teacher / T) || softmax(student / T))``
    (Hinton et al., arXiv 1503.02531, whose cross entropy has the same gradient), for a sigmoid
    the divergence of the two probabilities, for anything else the squared error. The teacher
    gets no gradient.
    """
    share = 1 / temperature if student.activation == "softmax" else 1.0
    goal = F.mul_scalar(teacher.variable, share)
    goal.need_grad = False
    if student.activation == "softmax":
        axis = student.axis
        scores = F.log_softmax(F.mul_scalar(student.variable, share), axis=axis)
        log_goal = F.log_softmax(goal, axis=axis)
        terms = F.mul2(F.softmax(goal, axis=axis), F.sub2(log_goal, scores))
        return F.mul_scalar(F.mean(F.sum(terms, axis=axis)), temperature**2)
    if student.activation == "sigmoid":
        probability = F.sigmoid(goal)
        own = _binary_cross_entropy(goal, probability)
        return F.sub2(_binary_cross_entropy(student.variable, probability), own)
    return F.mean(F.squared_error(student.variable, goal))


def _without_gradients(output: Variable) -> None:
    """Let nothing above ``output`` get a gradient, so that nothing is kept for one."""

    def cut(function: Any) -> None:
        for v in (*function.inputs, *function.outputs):
            v.need_grad = False

    output.visit(cut)


def distance(
    student: Mapping[str, Logits],
    inputs: Mapping[str, Variable],
    teacher: Teacher,
    recipe: Recipe,
    batch_size: int,
) -> Variable:
    """The distillation loss over all outputs of the network that is run.

    Args:
        student: What is compared, by the names of its outputs.
        inputs: Of the student, by name.
        teacher: The float network.
        recipe: Its temperature counts.
        batch_size: Of the inputs.

    Raises:
        NNPError: The teacher has other inputs or outputs.
    """
    goals = teacher.outputs(student, inputs, batch_size)
    distances = []
    for (name, own), goal in zip(student.items(), goals):
        _without_gradients(goal.variable)
        if own.variable.shape != goal.variable.shape:
            raise NNPError(
                f"{teacher.path}: is no teacher for this network: its output has shape "
                f"{goal.variable.shape}, {name} has {own.variable.shape}"
            )
        distances.append(distillation(own, goal, recipe.distillation_temperature))
    return reduce(F.add2, distances)


def taught(
    loss: Variable,
    student: Mapping[str, Logits],
    inputs: Mapping[str, Variable],
    teacher: Optional[Teacher],
    recipe: Recipe,
    batch_size: int,
) -> Variable:
    """``(1 - w) loss + w distance`` with the recipe's weight ``w``; ``loss`` without a teacher.

    Raises:
        NNPError: The teacher has other inputs or outputs.
    """
    if teacher is None:
        return loss
    own, other = 1 - recipe.taught, recipe.taught
    goal = distance(student, inputs, teacher, recipe, batch_size)
    return F.add2(F.mul_scalar(loss, own), F.mul_scalar(goal, other))
