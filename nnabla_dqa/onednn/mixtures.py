"""Mixtures, of weights and of activations, as layers of a plan."""

from __future__ import annotations

from typing import Any, Sequence

from nnabla_dqa.backends.cpu import CpuKernels
from nnabla_dqa.backends.cpu_activations import CpuActivations
from nnabla_dqa.backends.fused import NAME as MIXTURE
from nnabla_dqa.backends.fused import mixture_of, quantizers_of
from nnabla_dqa.backends.fused_activations import NAME as ACTIVATIONS
from nnabla_dqa.backends.fused_activations import first_array, spec_of
from nnabla_dqa.backends.kernel_args import AttentionSpec, LayerSpec
from nnabla_dqa.onednn.builder import Builder
from nnabla_dqa.onednn.program import MAX_INPUTS, Kind

_SMALL = 1 << 16
"""Weights below which a mixture is worth no second thread. Those of all such mixtures are in
memory together, with their gradients."""


def is_small(f: Any) -> bool:
    """Whether a mixture is computed by one thread, beside others, before all else."""
    if f.info.type_name != MIXTURE or any(v.parent is not None for v in f.inputs):
        return False
    return bool(f.inputs[0].size < _SMALL)


def mixture(b: Builder, f: Any) -> None:
    """A mixture of weights, by the compiled kernels."""
    args = f.info.args
    w, *state = f.inputs
    quantizers = quantizers_of(f)
    assert quantizers is not None
    mixed = mixture_of(args)
    attention = None if mixed is None else AttentionSpec.of(mixed.mixing)
    spec = LayerSpec.of(w.shape, quantizers, attention)
    assert spec is not None
    kernels = CpuKernels(spec)
    least = args.get("prune_below", 0.0) if mixed is None else mixed.mixing.prune_below
    q, *coefficients = f.outputs
    outputs = [b.new_flat(q), *[b.flat_or_new(a) for a in coefficients]]
    b.plan.layer(
        Kind.MIXTURE,
        [b.flat(w), *[b.flat(v) for v in state[:1]], *[b.state(v) for v in state[1:]]],
        outputs,
        {0: [is_small(f)]},
        [least],
        kernels.arguments,
    )
    b.plan.kept_alive.append(kernels)


def refuses_activations(f: Any) -> str:
    count = len(f.inputs)
    return f"it has {count} inputs, more than {MAX_INPUTS}" if count > MAX_INPUTS else ""


def activations(b: Builder, f: Any) -> None:
    """A mixture of activations, in the order in which they lie."""
    args = f.info.args
    x, *others = f.inputs
    q, *coefficients = f.outputs
    source, target = b.alike(x, q)
    outputs = [target, *[b.flat_or_new(a) for a in coefficients]]
    kernels = CpuActivations(spec_of(args, x.shape))
    first = first_array(args)
    b.plan.layer(
        Kind.ACTIVATIONS,
        [source, *[b.flat(v) if v.need_grad else b.state(v) for v in others]],
        outputs,
        {0: ["mixing" in args, first > 1, first, len(f.inputs) - first]},
        [args["prune_below"]],
        kernels.arguments,
    )
    b.plan.kept_alive.append(kernels)


def refuses_concatenation(f: Any) -> str:
    """Rows of one table alone, which are written there by those who compute them."""
    if f.info.args["axis"] != 0:
        return "it is not along the first axis"
    for v in f.inputs:
        made = v.parent
        if made is None or made.info.type_name not in (MIXTURE, ACTIVATIONS):
            return "its inputs are not coefficients of mixtures"
        if len(made.outputs) < 2 or v != made.outputs[1]:
            return "its inputs are not coefficients of mixtures"
        if len(v.function_references) > 1:
            return "its inputs are used elsewhere too"
    if len(set(f.inputs)) < len(f.inputs):
        return "one of its inputs comes twice"
    return ""


def nothing(b: Builder, f: Any) -> None:
    """What it computes is there when its inputs are."""


def reserve_tables(b: Builder, functions: Sequence[Any]) -> None:
    """Let the coefficients of mixtures lie in the tables that are made of them."""
    for f in functions:
        if f.info.type_name == "Concatenate":
            offset = 0
            for v in f.inputs:
                b.part_of(v, f.outputs[0], offset)
                offset += v.size
