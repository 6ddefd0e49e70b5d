"""Which functions of a graph are computed together."""

from __future__ import annotations

from typing import Any, Callable, Dict, List, NamedTuple, Sequence, Set, Tuple

from nnabla_dqa.backends.fused import NAME as MIXTURE
from nnabla_dqa.backends.fused_activations import NAME as ACTIVATIONS
from nnabla_dqa.onednn.lowering import RULES, why_nnabla

_WORTH_IT = ("Convolution", "DepthwiseConvolution", "Deconvolution", "Affine")
_ALWAYS = (MIXTURE, ACTIVATIONS, "Concatenate")


class Part(NamedTuple):
    """Functions that become one.

    Attributes:
        functions: In an order in which they can be computed.
        outputs: The variables that are needed outside, likewise.
    """

    functions: List[Any]
    outputs: List[Any]


class Found(NamedTuple):
    """What :func:`find_parts` found.

    Attributes:
        parts: What is computed together.
        left: The functions that stay NNabla's, and why.
        stages: A number for each function: that of a part comes before what is left of the
            same number, and after all of a lower one.
    """

    parts: List[Part]
    left: Dict[Any, str]
    stages: Dict[Any, int]


def find_parts(
    functions: Sequence[Any],
    kept: Sequence[Any],
    refuses: Callable[[Any], str],
    summed: Sequence[Any] = (),
) -> Found:
    """Divide a graph.

    What is needed for some of the ends alone is no part of what others need too: to compute one
    of them computes nothing of the others.

    Args:
        functions: All of the graph, in an order in which they can be computed.
        kept: Variables that have to be there afterwards.
        refuses: Why oneDNN does not compute a function that has a rule, empty if it does.
        summed: Variables whose gradient NNabla adds up; the part that makes one uses it nowhere.
    """
    left: Dict[Any, str] = {}
    for f in functions:
        reason = why_nnabla(f) or (refuses(f) if RULES[f.info.type_name].probes else "")
        if reason:
            left[f] = reason
    _leave_what_makes_weights(functions, left)
    ends = _ends(functions, kept)
    stages = _stages(functions, left, ends, set(summed))
    while _leave_torn_tables(functions, left, stages, ends):
        stages = _stages(functions, left, ends, set(summed))
    users: Dict[Any, List[Any]] = {}
    for f in functions:
        for v in f.inputs:
            users.setdefault(v, []).append(f)
    needed = set(kept)
    parts = []
    groups: Dict[Tuple[int, int], List[Any]] = {}
    for f in functions:
        if f not in left:
            groups.setdefault((stages[f], ends[f]), []).append(f)
    for _, members in sorted(groups.items()):
        if not any(f.info.type_name in _WORTH_IT for f in members):
            left.update((f, "it stands alone") for f in members)
            continue
        inside = set(members)
        outputs = [
            v
            for f in members
            for v in f.outputs
            if v in needed or v.persistent or any(u not in inside for u in users.get(v, ()))
        ]
        parts.append(Part(members, outputs))
    return Found(parts, left, stages)


def _leave_what_makes_weights(functions: Sequence[Any], left: Dict[Any, str]) -> None:
    """Leave what only makes weights: the graph of a mixture, for example."""
    others: Dict[Any, bool] = {}  # whether something else than weights is made of a variable
    for f in reversed(functions):
        uses = [others[v] for v in f.outputs if v in others]
        is_end = not uses
        makes_weights = not is_end and not any(uses)
        if makes_weights and f not in left and f.info.type_name not in _ALWAYS:
            left[f] = "it makes weights"
        for i, v in enumerate(f.inputs):
            used = f.info.type_name not in _WORTH_IT or i == 0
            others[v] = others.get(v, False) or (used and not makes_weights)


def _leave_torn_tables(
    functions: Sequence[Any], left: Dict[Any, str], stages: Dict[Any, int], ends: Dict[Any, int]
) -> bool:
    """Leave the tables whose rows are not all made in the part of the table; whether there were.

    The rows are written into the table by those who compute them, and nobody copies others there.
    """
    makers = {v: f for f in functions for v in f.outputs}
    torn = [
        f
        for f in functions
        if f.info.type_name == "Concatenate"
        and f not in left
        and any(
            made in left or (stages[made], ends[made]) != (stages[f], ends[f])
            for made in (makers[v] for v in f.inputs)
        )
    ]
    left.update((f, "its rows are computed in several parts") for f in torn)
    return bool(torn)


def _ends(functions: Sequence[Any], kept: Sequence[Any]) -> Dict[Any, int]:
    """For each function, which of the ends it leads to, as bits.

    Ends are those of the kept variables from which no way leads to another one.
    """
    bits = {v: 1 << i for i, v in enumerate(dict.fromkeys(kept))}
    above: Dict[Any, int] = {}
    found: Dict[Any, int] = {}
    for f in reversed(functions):
        found[f] = 0
        for v in f.outputs:
            found[f] |= above.get(v, 0) | bits.get(v, 0)
        for v in f.inputs:
            above[v] = above.get(v, 0) | found[f]
    tops = sum(bit for v, bit in bits.items() if not above.get(v, 0) & ~bit)
    return {f: mask & tops for f, mask in found.items()}


def _stages(
    functions: Sequence[Any], left: Dict[Any, str], ends: Dict[Any, int], summed: Set[Any]
) -> Dict[Any, int]:
    """Numbers for the functions, so that those of one number and the same ends can be one part.

    From none of them to another one of the same number does a way lead through a function that
    is left: behind such a function the number is higher, and where there are fewer ends.
    """
    made: Dict[Any, Any] = {}
    stages: Dict[Any, int] = {}
    for f in functions:
        before = [made[v] for v in f.inputs if v in made]
        if f in left:
            stages[f] = max((stages[p] for p in before), default=-1)
        else:
            stages[f] = max(
                (stages[p] + (p in left or ends[p] != ends[f]) for p in before), default=0
            )
            behind = [stages[made[v]] + 1 for v in f.inputs if v in made and v in summed]
            stages[f] = max([stages[f], *behind])
        for v in f.outputs:
            made[v] = f
    _bring_to_their_users(functions, left, stages, ends)
    return stages


def _bring_to_their_users(
    functions: Sequence[Any], left: Dict[Any, str], stages: Dict[Any, int], ends: Dict[Any, int]
) -> None:
    """What depends on parameters alone is computed where it is used first: mixtures."""
    users: Dict[Any, List[Any]] = {}
    for f in reversed(functions):
        if f not in left:
            # Of other ends it is another part, which comes before.
            after = [stages[u] - (ends[u] != ends[f]) for v in f.outputs for u in users.get(v, ())]
            if after and all(v.parent is None for v in f.inputs):
                stages[f] = max(stages[f], min(after))
        for v in f.inputs:
            users.setdefault(v, []).append(f)
