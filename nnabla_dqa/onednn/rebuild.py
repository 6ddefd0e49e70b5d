"""Graphs whose layers oneDNN computes."""

from __future__ import annotations

from typing import Any, Dict, List, NamedTuple, Sequence, Set, Tuple

import nnabla as nn
import nnabla.function

from nnabla_dqa.backends.fused import with_array_class
from nnabla_dqa.backends.fused_activations import NAME as ACTIVATIONS
from nnabla_dqa.graph.traverse import again
from nnabla_dqa.onednn.builder import Builder
from nnabla_dqa.onednn.function import PartFunction
from nnabla_dqa.onednn.library import OneDnnError, why_not
from nnabla_dqa.onednn.lowering import RULES
from nnabla_dqa.onednn.parts import Found, find_parts
from nnabla_dqa.onednn.program import computes
from nnabla_dqa.onednn.saving import install_writer

_ALL_USED = (
    "functions use all its outputs and would keep the graph that is there; give it what is built "
    "on them"
)


class Accelerated(NamedTuple):
    """What :func:`nnabla_dqa.accelerate` did.

    Attributes:
        functions: How many of NNabla's functions oneDNN computes now.
        parts: How many functions they have become.
        left: How many stay NNabla's, by their type and why, for example
            ``{"Dropout: there is no layer for it": 1}``.
        reason: Why nothing was done, for example that oneDNN is not installed; empty if
            something was.
    """

    functions: int
    parts: int
    left: Dict[str, int]
    reason: str = ""


def rebuild(
    outputs: Sequence[nn.Variable],
    trains: bool,
    in_place: bool,
    summed: Sequence[nn.Variable] = (),
) -> Tuple[List[nn.Variable], Accelerated]:
    """A graph with the same values whose layers oneDNN computes.

    Args:
        outputs: Where the graph ends, and what is looked at within it.
        trains: Whether there will be a backward pass.
        in_place: The outputs themselves go over to the new graph. Otherwise the given graph
            stays as it is, and what is returned shares its arrays with it.
        summed: Those within the graph whose gradients are looked at, too.

    Returns:
        The outputs in the new graph, and what was done.

    Raises:
        OneDnnError: oneDNN cannot be used; or a function behind a layer is written in Python and
            cannot be built anew.
    """
    if why_not():
        raise OneDnnError(why_not())
    install_writer()
    if in_place and outputs and all(v.function_references for v in outputs):
        return list(outputs), Accelerated(0, 0, {}, _ALL_USED)
    functions = _functions(outputs)
    known: Dict[Any, str] = {}

    def refuses(f: Any) -> str:
        key = _key(f)
        if key not in known:
            known[key] = _probe(f, trains)
        return known[key]

    found = find_parts(functions, outputs, refuses, [v for v in summed if v.need_grad])
    _check_python_functions(functions, found)
    new = _rebuilt(functions, found, trains, set(outputs) if in_place else set())
    left: Dict[str, int] = {}
    for f, reason in found.left.items():
        text = f"{f.info.type_name}: {reason}"
        left[text] = left.get(text, 0) + 1
    nothing = "" if found.parts else "there is no layer in it that oneDNN computes"
    summary = Accelerated(len(functions) - len(found.left), len(found.parts), left, nothing)
    return [new.get(v, v) for v in outputs], summary


def _rebuilt(
    functions: Sequence[Any], found: Found, trains: bool, ends: Set[Any]
) -> Dict[Any, nn.Variable]:
    """The graph with its parts, as new variables by the old ones.

    Of ``ends``, those that nothing uses go over to it, the others share their arrays with it.
    It is built anew because NNabla sets up all functions behind a rewired variable again, and
    frees those written in Python when it does.
    """
    new: Dict[Any, nn.Variable] = {}

    def note(old: Sequence[nn.Variable], results: Sequence[nn.Variable]) -> None:
        for v, result in zip(old, results):
            new[v] = result
            result.persistent = v.persistent
            if result.need_grad and not v.need_grad:
                result.need_grad = False  # the user has cut the gradient here
            if v in ends and not v.function_references:
                # The function that computed it gets another variable.
                nn.Variable(v.shape).rewire_on(v)
                v.rewire_on(result)
                new[v] = v
                continue
            # So that it shows the values, and either graph can be saved.
            v.data = result.data
            if v in ends:
                v.grad = result.grad
                result.persistent = True

    for stage in sorted(set(found.stages.values())):
        for part in found.parts:
            if found.stages[part.functions[0]] == stage:
                made = PartFunction(part, with_array_class(part.functions[0].context), trains)
                inputs = [new.get(v, v) for v in made.inputs]
                with nn.auto_forward(False):
                    results = made(*inputs, n_outputs=len(part.outputs))
                results = [results] if isinstance(results, nn.Variable) else results
                note(part.outputs, results)
        for f in functions:
            if f in found.left and found.stages[f] == stage and any(v in new for v in f.inputs):
                results = again(f, [new.get(v, v) for v in f.inputs], "accelerate")
                note(f.outputs, results)
    return new


def _check_python_functions(functions: Sequence[Any], found: Found) -> None:
    changed = {v for part in found.parts for v in part.outputs}
    for f in functions:
        if f in found.left and any(v in changed for v in f.inputs):
            kind = f.info.type_name
            if kind != ACTIVATIONS and not hasattr(nnabla.function, kind):
                raise OneDnnError(
                    f"function {f.info.type_name} is not one of NNabla's own and cannot be built "
                    f"anew behind layers on oneDNN; call accelerate with what it uses before it "
                    f"is built"
                )
            changed.update(f.outputs)


def _functions(outputs: Sequence[nn.Variable]) -> List[Any]:
    """All functions of a graph, each after those that it needs."""
    functions: Dict[Any, None] = {}
    for output in outputs:
        output.visit(lambda f: functions.setdefault(f))
    return list(functions)


def _key(f: Any) -> Any:
    arguments = tuple(sorted((k, repr(v)) for k, v in f.info.args.items()))
    shapes = tuple((v.shape, v.need_grad) for v in f.inputs)
    return f.info.type_name, arguments, shapes


def _probe(f: Any, trains: bool) -> str:
    """Why oneDNN does not compute a layer, empty if it does."""
    builder = Builder(trains)
    RULES[f.info.type_name].lower(builder, f)
    builder.hand_out(f.outputs[0])
    return computes(builder.finish(), trains and any(v.need_grad for v in f.inputs))
