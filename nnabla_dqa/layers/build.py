"""What a layer does with its weights and its input while it is built: state, mixture, errors."""

from __future__ import annotations

from typing import Any, Callable, Dict, Optional, Sequence

import nnabla as nn
import nnabla.functions as F
import numpy as np
from nnabla.parameter import get_parameter_or_create

from nnabla_dqa._util.devices import in_float32
from nnabla_dqa._util.warn import warn
from nnabla_dqa.backends import BackendError
from nnabla_dqa.backends import mixture as mix
from nnabla_dqa.backends.dispatch import activations as activate
from nnabla_dqa.backends.dispatch import (
    checks_before_saving,
    mixture_with_attention,
)
from nnabla_dqa.layers.built import note_build
from nnabla_dqa.layers.config import ACTIVATION, WEIGHT, TensorConfig, check_config, check_place
from nnabla_dqa.layers.scopes import (
    current_activations,
    current_mixture,
    current_selection,
    is_choosing,
    listed,
    make_mixture,
)
from nnabla_dqa.layers.tensors import (
    INPUT,
    AttentionWarning,
    QuantizedTensor,
    find_quantized,
    scope_path,
    state_scope,
)
from nnabla_dqa.mixing import MixingRule, Mixture
from nnabla_dqa.mixing.mixture import CHOSEN, HARD
from nnabla_dqa.quantization import Quantizer, StateEntry
from nnabla_dqa.quantization.encoding import RowLayout
from nnabla_dqa.quantization.graph_ops import Variable, lift

# Saving a graph refuses state of another net too.
checks_before_saving.append(find_quantized)

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
        fix_parameters: Do not train alpha and the state of quantizers.
        apply_w: Done to the weights before.
        key: The name of the weights in the current scope.
        name: What messages call the layer; default: the path of the scope.

    Raises:
        ValueError: The layer exists with another mixture, has no such channel axis, or
            its rule gives coefficients of another shape.
        BackendError: Fused kernels were asked for and cannot be used.
    """
    scope = nn.parameter.get_current_parameter_scope()
    path = name or (scope_path(scope) if key == "W" else key)
    config = TensorConfig(function, mixture)
    try:
        check_place(mixture, WEIGHT)
        for q in mixture.quantizers:
            RowLayout.of(w.shape, q.axis)
        check_config(scope.get(state_scope(key), {}), config)
        state = _register(config, w.shape, fix_parameters, key)
        chosen = _chosen(config, scope, key)
    except ValueError as error:
        raise ValueError(f"layer {path}: {error}") from None
    message = mixture.mixing.check(mixture.quantizers)
    selection = current_selection()
    if message and selection is None:
        warn(f"layer {path}: {message}", AttentionWarning)
    with in_float32():
        w = lift(w, inp)
        if apply_w is not None:
            w = apply_w(w)
        lifted = {path: lift(v, inp) for path, v in state.items()}
        states = mixture.quantizer_states(lifted)
        quantizers, coefficients = mixture.quantizers, None
        if selection == "target" and chosen is not None:
            # Which one it is may change: a budget chooses.
            coefficients = F.reshape(lift(chosen, inp), (1, len(quantizers)), inplace=False)
        elif selection is not None:
            index = _selected(QuantizedTensor("", config, scope, key), selection)
            quantizers, states = quantizers[index : index + 1], states[index : index + 1]
        try:
            attended = mixture_with_attention(w, mixture, lifted) if selection is None else None
            if attended is not None:
                q, coefficients = attended
            else:
                if selection is None:
                    coefficients = mixture.coefficients(lifted)
                prune, alone = mixture.mixing.prune_below, selection is not None
                q = mix(w, quantizers, coefficients, prune, states, alone)
        except (BackendError, ValueError) as error:
            kind = BackendError if isinstance(error, BackendError) else ValueError
            raise kind(f"layer {path}: {error}") from None
    if coefficients is not None and selection is None:
        note_build(state[HARD], coefficients)
    return q


def quantize_input(
    function: str,
    inp: Variable,
    activations: Quantizers,
    mixing: Optional[MixingRule],
    fix_parameters: bool,
    channel_last: bool = False,
) -> Variable:
    """What enters the layer being built, quantized if its ``activations`` or the block say so.

    ``activations`` given to the layer itself hold for whatever enters it; those of the
    enclosing block leave alone what nothing in the graph has computed: the network's input.

    Raises:
        ValueError: As of :func:`mix_activations`, or the layer has ``channel_last`` and a
            quantizer that looks at channels.
    """
    mixture = current_activations() if inp.parent is not None and function != "Embed" else None
    try:
        if activations and function == "Embed":
            raise ValueError("what enters an Embed are indices, which are not quantized")
        if activations is not None:
            own = listed(activations, "activations", "[PACT(2)]")
            mixture = make_mixture(*own, mixing=mixing) if own else None
        elif mixture is not None and mixing is not None:
            mixture = Mixture(mixture.quantizers, mixing, mixture.target)
        if channel_last and mixture is not None:
            _check_channels_first(mixture)
    except ValueError as error:
        scope = nn.parameter.get_current_parameter_scope()
        raise ValueError(f"layer {scope_path(scope)}{INPUT}: {error}") from None
    return inp if mixture is None else mix_activations(inp, function, mixture, fix_parameters)


def _check_channels_first(mixture: Mixture) -> None:
    for q in mixture.quantizers:
        if q.rows_are_channels:
            raise ValueError(f"{q} has channels on axis 1; build it without channel_last=True")


def mix_activations(
    inp: Variable,
    function: str,
    mixture: Mixture,
    fix_parameters: bool = False,
    key: str = "W",
    name: Optional[str] = None,
) -> Variable:
    """``inp`` through a mixture, with the state of the layer in the current scope.

    It is computed in float32.

    Args:
        inp: What enters the layer, of any shape; it has one range. Its channels, where a
            quantizer looks at them, are axis 1.
        function, mixture, fix_parameters, key, name: As of :func:`mix_weights`.

    Raises:
        ValueError: The layer exists with another mixture, or a quantizer is one of weights.
        BackendError: Fused kernels were asked for and cannot be used.
    """
    scope = nn.parameter.get_current_parameter_scope()
    path = (name or (scope_path(scope) if key == "W" else key)) + INPUT
    config = TensorConfig(function, mixture, ACTIVATION)
    selection = current_selection()
    try:
        check_place(mixture, ACTIVATION)
        for q in mixture.quantizers:
            if q.axis is not None and not q.rows_are_channels:
                raise ValueError(f"{q}: activations have one range; leave channel_axis out")
        check_config(scope.get(state_scope(key), {}).get(ACTIVATION, {}), config)
        state = _register(config, inp.shape, fix_parameters, key)
    except ValueError as error:
        raise ValueError(f"layer {path}: {error}") from None
    message = mixture.mixing.check(mixture.quantizers)
    if message and selection is None:
        warn(f"layer {path}: {message}", AttentionWarning)
    with in_float32():
        lifted = {path: lift(v, inp) for path, v in state.items()}
        index = None
        if selection is not None:
            index = _selected(QuantizedTensor(path, config, scope, key), selection)
        try:
            q, coefficients = activate(inp, mixture, lifted, index)
        except BackendError as error:
            raise BackendError(f"layer {path}: {error}") from None
    if coefficients is not None:
        note_build(state[HARD], coefficients)
    return q


def _resolve(quantizers: Quantizers, mixing: Optional[MixingRule]) -> Mixture:
    around = current_mixture()
    if quantizers is None:
        if around is None:
            raise ValueError(
                "no quantizers; give quantizers=(MinMax(2), ...) or build it in a "
                "`with dqa.quantizers(...)` block"
            )
        return around if mixing is None else Mixture(around.quantizers, mixing, around.target)
    return make_mixture(*listed(quantizers, "quantizers", "[MinMax(2)]"), mixing=mixing)


def _register(
    config: TensorConfig, shape: Sequence[int], fix_parameters: bool, key: str
) -> Dict[str, Variable]:
    """The layer's state, made where it does not exist."""
    scope = state_scope(key) if config.tensor == WEIGHT else f"{state_scope(key)}/{ACTIVATION}"
    with nn.parameter_scope(scope):
        path, content = config.entry()
        get_parameter_or_create(path, content.shape, content, need_grad=False)
        return {
            path: _array(path, entry, fix_parameters)
            for path, entry in config.layout(shape).items()
        }


def _chosen(config: TensorConfig, scope: Any, key: str) -> Optional[Variable]:
    """The array by which a budget says what remains of a layer's weights, if one can."""
    if not config.mixture.is_mixed:
        return None
    if is_choosing():
        with nn.parameter_scope(state_scope(key)):
            add_choice(config.mixture)
    return scope.get(state_scope(key), {}).get(CHOSEN)


def add_choice(mixture: Mixture) -> None:
    """Make ``chosen`` in the current scope, a layer's state; it starts as the target."""
    first = mixture.alone(mixture.target)
    get_parameter_or_create(CHOSEN, first.shape, first, need_grad=False)


def _array(path: str, entry: StateEntry, fix_parameters: bool) -> Variable:
    if entry.kind == "running":
        # No solver may see it, but graphs leave in its gradient what a mini-batch shows.
        shape, trained = entry.initial.shape, not fix_parameters
        v = get_parameter_or_create(path, shape, entry.initial, False, trained)
        if trained and current_selection() is None:
            v.grad.zero()
        return v
    trained = entry.learned and not fix_parameters
    known = nn.parameter.get_parameter(path)
    # Once a layer has been built to be trained, a second graph with fixed parameters leaves it so.
    registered = trained or (known is not None and known.need_grad)
    return get_parameter_or_create(path, entry.initial.shape, entry.initial, registered, trained)


def _selected(tensor: QuantizedTensor, selection: str) -> int:
    if selection == "argmax":
        return int(np.argmax(tensor.attention()))
    return tensor.mixture.target
