"""What a layer does with its weights while it is built: state, mixture, errors by name."""

from __future__ import annotations

import warnings
from typing import Any, Callable, Optional, Sequence

import nnabla as nn
import numpy as np
from nnabla.parameter import get_parameter_or_create

from nnabla_dqa._util.devices import in_float32
from nnabla_dqa.backends import BackendError
from nnabla_dqa.backends import mixture as mix
from nnabla_dqa.layers.scopes import current_choice, current_mixture, make_mixture
from nnabla_dqa.layers.tensors import (
    FINGERPRINT,
    AttentionWarning,
    Layer,
    Mixture,
    remember,
    scope_path,
    state_scope,
)
from nnabla_dqa.mixing import MixingRule, Single
from nnabla_dqa.quantization import Quantizer
from nnabla_dqa.quantization.base import RowLayout
from nnabla_dqa.quantization.graph_ops import Variable, lift

Quantizers = Optional[Sequence[Quantizer]]
Apply = Optional[Callable[[Variable], Variable]]


def mixer(
    function: str,
    inp: Variable,
    quantizers: Quantizers,
    mixing: Optional[MixingRule],
    fix_parameters: bool,
    apply_w: Apply,
) -> Callable[[Variable], Variable]:
    """What takes the weights of the layer being built to the weights its function uses."""

    def apply(w: Variable) -> Variable:
        try:
            mixture = _resolve(quantizers, mixing)
        except ValueError as error:
            scope = nn.parameter.get_current_parameter_scope()
            raise ValueError(f"layer {scope_path(scope)}: {error}") from None
        return mix_weights(w, inp, function, mixture, fix_parameters, apply_w)

    return apply


def mix_weights(
    w: Variable,
    inp: Variable,
    function: str,
    mixture: Mixture,
    fix_parameters: bool = False,
    apply_w: Apply = None,
    key: str = "W",
    name: Optional[str] = None,
) -> Variable:
    """The weights that ``function`` uses, with the state of the layer in the current scope.

    Whatever the current context, they are computed in float32.

    Args:
        w: The float weights, registered as ``key`` in the current scope.
        inp: The input of the function: tells whether a graph definition is recorded.
        function: NNabla's name of the function.
        mixture: What the weights go through.
        fix_parameters: Do not train alpha.
        apply_w: Done to the weights before.
        key: The name of the weights in the current scope.
        name: What messages call the layer; default: the path of the scope.

    Raises:
        ValueError: The layer exists with another mixture, has no such channel axis, or
            its rule gives shares of another shape.
        BackendError: Fused kernels were asked for and cannot be used.
    """
    scope = nn.parameter.get_current_parameter_scope()
    path = name or (scope_path(scope) if key == "W" else key)
    try:
        for q in mixture.quantizers:
            RowLayout.of(w.shape, q.axis)
        recorded = isinstance(inp, nn.ProtoVariable)
        _check_fingerprint(scope, mixture, key)
        remember(scope, function, mixture, recorded, fix_parameters, key)
    except ValueError as error:
        raise ValueError(f"layer {path}: {error}") from None
    state = _state(mixture, fix_parameters, key)
    message = mixture.mixing.check(mixture.quantizers)
    choice = current_choice()
    if message and choice is None:
        warnings.warn(f"layer {path}: {message}", AttentionWarning, stacklevel=6)
    if choice is not None:
        index = _chosen(Layer("", function, mixture, False, fix_parameters, scope, key), choice)
        mixture, state = Mixture(mixture.quantizers[index : index + 1], Single()), {}
    with in_float32():
        w = lift(w, inp)
        if apply_w is not None:
            w = apply_w(w)
        shares = mixture.shares({name: lift(v, inp) for name, v in state.items()})
        try:
            return mix(w, mixture.quantizers, shares, mixture.mixing.negligible)
        except (BackendError, ValueError) as error:
            kind = BackendError if isinstance(error, BackendError) else ValueError
            raise kind(f"layer {path}: {error}") from None


def _resolve(quantizers: Quantizers, mixing: Optional[MixingRule]) -> Mixture:
    around = current_mixture()
    if quantizers is None:
        if around is None:
            raise ValueError(
                "no quantizers; give quantizers=(MinMax(2), ...) or build it in a "
                "`with dqa.quantizers(...)` block"
            )
        return around if mixing is None else Mixture(around.quantizers, mixing)
    return make_mixture(*quantizers, mixing=mixing)


def _check_fingerprint(scope: Any, mixture: Mixture, key: str) -> None:
    """Refuse state, from a checkpoint for example, that belongs to other quantizers."""
    found = scope.get(state_scope(key), {}).get(FINGERPRINT)
    expected = mixture.fingerprint()
    if found is None or len(mixture.quantizers) == 1 or np.array_equal(found.d, expected):
        return
    bits = [int(b) for b in found.d[:-1]]
    raise ValueError(
        f"its state belongs to other quantizers (bits {bits}) than {mixture}; load the right "
        f"checkpoint, or remove the parameters in its scope {state_scope(key)!r} to begin anew"
    )


def _state(mixture: Mixture, fix_parameters: bool, key: str) -> dict[str, Variable]:
    count = len(mixture.quantizers)
    if count == 1:
        return {}
    variables = {}
    with nn.parameter_scope(state_scope(key)):
        for name, (initial, learned) in mixture.mixing.state(mixture.quantizers).items():
            variables[name] = get_parameter_or_create(
                name, initial.shape, initial, learned, learned and not fix_parameters
            )
        hard = np.zeros(count, np.float32)
        variables["hard"] = get_parameter_or_create("hard", hard.shape, hard, False)
        fingerprint = mixture.fingerprint()
        get_parameter_or_create(FINGERPRINT, fingerprint.shape, fingerprint, False)
    return variables


def _chosen(layer: Layer, choice: str) -> int:
    return 0 if choice == "lowest" else int(np.argmax(layer.attention()))
