"""The quantized tensors of a parameter scope: what they are and where their state lives.

A tensor's arrays are parameters beside it::

    conv1/conv/W                  the float weights
    conv1/conv/dqa/config/...     function, quantizers, rule and target; see layers/config.py
    conv1/conv/dqa/alpha          attention, learned (rule Attention)
    conv1/conv/dqa/temperature    T
    conv1/conv/dqa/hard           zeros, or one-hot: this quantizer alone
    conv1/conv/dqa/chosen         one-hot, with a budget: this quantizer remains
    conv1/conv/dqa/0/step         state of the first quantizer, if it has any (LSQ)
    conv1/conv/dqa/activation/... likewise, of what enters the layer, if that is quantized

Weights of another name, as files of other origin have them, keep their state in
a scope called like them: ``fc/weight`` in ``fc/weight.dqa/...``.
"""

from __future__ import annotations

import dataclasses
from functools import cached_property
from typing import Any, Dict, Iterable, Iterator, List, Mapping, Optional, Set, Tuple

import nnabla as nn
import nnabla.parameter
import numpy as np

from nnabla_dqa.layers.config import ACTIVATION, CONFIG, WEIGHT, TensorConfig, the_config
from nnabla_dqa.mixing import Mixture
from nnabla_dqa.mixing.mixture import CHOSEN, HARD
from nnabla_dqa.quantization import StateEntry
from nnabla_dqa.quantization.base import (
    FIRST,
    SAMPLE,
    SWITCH,
    check_ready,
    fitted_names,
    fitted_values,
    initial_values,
    soft_values,
    unset_names,
)

STATE_SCOPE = "dqa"
STEP, BUDGET, PRICE = "step", "budget", "price"
"""What the scope of that name keeps of a whole training: updates done; its budget, if any."""
OF_TRAINING = tuple(f"{STATE_SCOPE}/{name}" for name in (STEP, BUDGET, PRICE))
INPUT = ":input"
"""Behind a layer's name: the activations that enter it."""


class AttentionWarning(UserWarning):
    """A layer's attention does not do what its user probably expects."""


@dataclasses.dataclass(frozen=True)
class QuantizedTensor:
    """A tensor that goes through a mixture of quantizers: a layer's weights, or its input.

    ``name`` is the layer's: the path of its scope below the scope it was looked
    up in, such as ``"conv1/conv"``, or ``"conv1/conv:input"`` for what enters it. ``scope`` is
    the dictionary of that scope and ``key`` the name of the weights in it.

    Examples:
        >>> import nnabla as nn
        >>> import nnabla_dqa as dqa
        >>> import nnabla_dqa.parametric_functions as PF
        >>> y = PF.dqa_affine(nn.Variable((8, 64)), 10, name="fc", quantizers=[dqa.SAWB(2)])
        >>> (layer,) = dqa.find_quantized()
        >>> layer.name, layer.function, layer.weight.shape, layer.is_weight
        ('fc/affine', 'Affine', (64, 10), True)
    """

    name: str
    config: TensorConfig
    scope: Any = dataclasses.field(repr=False, compare=False)
    key: str = "W"

    @property
    def function(self) -> str:
        """NNabla's name of the function that uses the tensor."""
        return self.config.function

    @property
    def mixture(self) -> Mixture:
        """What the tensor goes through."""
        return self.config.mixture

    @property
    def tensor(self) -> str:
        """``"weight"`` or ``"activation"``."""
        return self.config.tensor

    @property
    def is_weight(self) -> bool:
        """Whether it is the layer's weights."""
        return self.tensor == WEIGHT

    @property
    def weight(self) -> Any:
        """The layer's float weights, ``nnabla.Variable``."""
        return self.scope[self.key]

    @property
    def weight_name(self) -> str:
        """The path of the weights below the scope the tensor was looked up in."""
        layer = self.name if self.is_weight else self.name[: -len(INPUT)]
        return weight_name(layer, self.key)

    @cached_property
    def layout(self) -> Mapping[str, StateEntry]:
        """What the arrays of its state are, by their paths in the state scope."""
        # Activations have one range whatever their shape, and come before their layer's weights.
        return self.config.layout(self.weight.shape if self.is_weight else self._channels())

    def _channels(self) -> Tuple[int, ...]:
        """A shape of the input with as many channels as quantizers that look at them have rows."""
        for k, q in enumerate(self.mixture.quantizers):
            if q.rows_are_channels:
                first = next(iter(q.state(1)))
                return 1, int(_lookup(self.arrays, f"{k}/{first}").shape[0])
        return ()

    @cached_property
    def state(self) -> Dict[str, Any]:
        """The arrays of rule and quantizers, and ``hard``, by their paths in the state scope."""
        return {path: _lookup(self.arrays, path) for path in self.layout}

    @property
    def arrays(self) -> Dict[str, Any]:
        """The dictionary of the state scope."""
        state = self.scope.get(state_scope(self.key), {})
        if not self.is_weight:
            return dict(state.get(ACTIVATION, {}))
        return {name: child for name, child in state.items() if name != ACTIVATION}

    def learned(self, *kinds: str) -> Dict[str, Any]:
        """The entries of :attr:`state` that a solver trains, of these kinds only if given."""
        return {
            path: v
            for path, v in self.state.items()
            if self.layout[path].learned and (not kinds or self.layout[path].kind in kinds)
        }

    @property
    def is_fixed(self) -> bool:
        """Whether its learned state was built with ``fix_parameters`` alone."""
        learned = self.learned()
        return bool(learned) and not any(v.need_grad for v in learned.values())

    @property
    def chosen(self) -> Optional[Any]:
        """The array by which a budget says what remains; None without a budget."""
        return self.arrays.get(CHOSEN)

    @property
    def target(self) -> int:
        """The index of the quantizer that remains: the budget's choice, or the mixture's target."""
        chosen = self.chosen
        return self.mixture.target if chosen is None else int(np.argmax(chosen.d))

    @property
    def is_hard(self) -> bool:
        """Whether the levels of one quantizer alone are in use."""
        return self.mixture.is_hard(self.state)

    def set_hard(self, index: Optional[int]) -> None:
        """Use one quantizer alone from now on, or mix them again (None)."""
        if self.mixture.is_mixed:
            if index is None:
                # Filled where it is used: no copy to a GPU for each layer and update.
                self.state[HARD].data.fill(0.0)
            else:
                self.state[HARD].d = self.mixture.alone(index)
        for path in self.mixture.switches:
            self.state[path].data.fill(0.0 if index is None else 1.0)

    def set_initial_state(self) -> bool:
        """Give quantizers' arrays that are still zero their first values, from the weights.

        Returns:
            Whether something is zero still, because the weights are.
        """
        mixture = self.mixture
        unset = False
        if not mixture.has_quantizer_state or not self.is_weight:
            return unset
        for q, state in zip(mixture.quantizers, mixture.quantizer_states(self.state)):
            arrays = {name: state[name].data.get_data("r") for name in unset_names(q)}
            if all(array.all() for array in arrays.values()):
                continue
            for name, value in initial_values(q, self.weight.d).items():
                state[name].d = np.where(arrays[name] == 0, value, arrays[name])
                unset = unset or not state[name].d.all()
        return unset

    def fit(self) -> None:
        """Set what quantizers fit to the weights (:meth:`Quantizer.fit`), until they have learned.

        They have from the first update on, which sets the arrays that start as zeros.
        """
        for state, values in self._fitted():
            for name, value in values.items():
                state[name].d = value

    def check_fitted(self) -> None:
        """Raise ValueError if :meth:`fit` would give something else than what was used."""
        for state, values in self._fitted():
            for name, value in values.items():
                if not np.array_equal(state[name].d, value):
                    raise ValueError(
                        f"layer {self.name}: its {name} were fitted to other weights, by "
                        f"dqa.attach or convert; load weights before attaching the solver"
                    )

    def _fitted(self) -> Iterator[Tuple[Dict[str, Any], Dict[str, np.ndarray]]]:
        """The state of each quantizer of weights that has learned nothing yet, and its fit."""
        mixture = self.mixture
        if not self.is_weight or not any(map(fitted_names, mixture.quantizers)):
            return
        for q, state in zip(mixture.quantizers, mixture.quantizer_states(self.state)):
            # Rows of zeros may stay unset for ever: one row that has learned tells.
            if fitted_names(q) and not any(state[name].d.any() for name in unset_names(q)):
                yield state, fitted_values(q, self.weight.d, {k: v.d for k, v in state.items()})

    @cached_property
    def running(self) -> Dict[str, Any]:
        """The entries of :attr:`state` that training updates move."""
        return {path: v for path, v in self.state.items() if self.layout[path].kind == "running"}

    def move_running(self) -> None:
        """Move running arrays to what the backward passes since the last call have left.

        An array's gradient holds sums over the mini-batches and, at the end of each row,
        their number. Learned arrays that are still zero get their first values so.
        """
        for path, v in self.running.items():
            sums = v.g.copy()
            v.grad.zero()
            if sums.all(axis=0)[-1]:
                # Arrays that NNabla has read from protobuf are float64.
                old, new = v.d.astype(np.float32), sums / sums[:, -1:]
                kept = self.layout[path].momentum * old[:, -1:]
                v.d = new + kept * (old - new)
                self._set_first(path)
        self._fit_to_sample()

    def forget_observed(self) -> None:
        """Drop what backward passes have left, as for a mini-batch that updates nothing."""
        for v in self.running.values():
            v.grad.zero()

    def _set_first(self, path: str) -> None:
        index, _, name = path.partition("/")
        if name != FIRST:
            return
        q = self.mixture.quantizers[int(index)]
        state = self.mixture.quantizer_states(self.state)[int(index)]
        first = state[FIRST].d
        means = {unset: first[:, i : i + 1] for i, unset in enumerate(unset_names(q))}
        for unset, value in q.first_values(means).items():
            array = state[unset].d
            state[unset].d = np.where(array == 0, value, array)

    def _fit_to_sample(self) -> None:
        for q, state in zip(self.mixture.quantizers, self.mixture.quantizer_states(self.state)):
            names = fitted_names(q) if SAMPLE in state else ()
            if all(state[name].d.any() for name in names) or not state[SAMPLE].d[:, -1].all():
                continue
            arrays = {name: v.d for name, v in state.items()}
            if all(arrays[name].all() for name in unset_names(q)):
                for name, value in q.fit(arrays[SAMPLE][:, :-1], arrays).items():
                    state[name].d = value

    def attention(self) -> np.ndarray:
        """The rule's coefficients, shape (K,), as if the layer were not hard; reads only."""
        mixture = self.mixture
        return mixture.mixing.evaluate(self.state, len(mixture.quantizers), mixture.target)

    def coefficients(self) -> np.ndarray:
        """The coefficients in use, shape (K,): the rule's, or one-hot once hard; reads only."""
        if self.mixture.is_mixed and self.state[HARD].d.any():
            values: np.ndarray = self.state[HARD].d.copy()
            return values
        return self.attention()

    def quantizer_state(self, index: int) -> Dict[str, np.ndarray]:
        """The arrays of one quantizer by name."""
        states = self.mixture.quantizer_states(self.state)
        return {name: v.d for name, v in states[index].items()} if states else {}

    def check_set(self, index: int) -> None:
        """Raise ValueError, naming the layer, if a quantizer of activations has seen no data."""
        try:
            check_ready(self.mixture.quantizers[index], self.quantizer_state(index))
        except ValueError as error:
            raise ValueError(f"layer {self.name}: {error}") from None

    def mixed_weights(self) -> np.ndarray:
        """``sum_k a_k Q_k(W)`` with the coefficients in use, shaped like W; reads only.

        An ``apply_w`` of the user, which comes before the quantizers, is left out.

        Raises:
            ValueError: It is no weight.
        """
        if not self.is_weight:
            raise ValueError(f"layer {self.name} is not a weight but what enters the layer")
        parts = [a * self._values(k) for k, a in enumerate(self.coefficients())]
        total: np.ndarray = np.sum(parts, axis=0)
        return total

    def _values(self, index: int) -> np.ndarray:
        """What one quantizer makes of the weights now, soft or not."""
        q, state = self.mixture.quantizers[index], self.quantizer_state(index)
        if q.is_soft and not state[SWITCH].any():
            return soft_values(q, self.weight.d, state)
        return q.quantize(self.weight.d, state)

    def soft_gap(self) -> Optional[float]:
        """``mean|soft - steps| / mean|steps|`` of a target that is soft in training, else None.

        What training uses, or used when the hard phase began (at its last temperature or
        slope, with the weights of now), against what is deployed. Reads only.
        """
        index = self.target
        quantizer = self.mixture.quantizers[index]
        if not self.is_weight or not quantizer.is_soft:
            return None
        state = self.quantizer_state(index)
        levels = quantizer.quantize(self.weight.d, state).astype(np.float64)
        size = np.abs(levels).mean()
        soft = soft_values(quantizer, self.weight.d, state)
        return float(np.abs(soft - levels).mean() / size) if size else 0.0


def _lookup(node: Any, path: str) -> Any:
    for part in path.split("/"):
        node = node[part]
    return node


def layer_name(weight: str) -> str:
    """The layer's name by the path of its weights: ``conv1/conv`` for ``conv1/conv/W``."""
    return weight[: -len("/W")] if weight.endswith("/W") else weight


def weight_name(layer: str, key: str = "W") -> str:
    """The inverse of :func:`layer_name`."""
    return f"{layer}/W" if key == "W" and layer != "W" else layer


def state_scope(key: str = "W") -> str:
    """The scope, beside weights called ``key``, of the layer's state."""
    return STATE_SCOPE if key == "W" else f"{key}.{STATE_SCOPE}"


def find_quantized(scope: Any = None) -> List[QuantizedTensor]:
    """The quantized tensors below a parameter scope (default: the current one).

    They come in the order in which they were built, a layer's weights before what enters
    it. All that is known about them stands in the scope.

    Raises:
        ValueError: A layer's state belongs to two different mixtures: the
            parameters of another net were loaded. Names the layer.

    Examples:
        >>> import nnabla as nn
        >>> import nnabla_dqa as dqa
        >>> import nnabla_dqa.parametric_functions as PF
        >>> with dqa.quantizers(dqa.SAWB(2), activations=[dqa.PACT(2)]):
        ...     h = PF.dqa_affine(nn.Variable((8, 64)), 32, name="fc1")
        ...     y = PF.dqa_affine(h, 10, name="fc2")
        >>> [tensor.name for tensor in dqa.find_quantized()]
        ['fc1/affine', 'fc2/affine', 'fc2/affine:input']
    """
    root = nn.parameter.get_current_parameter_scope() if scope is None else scope
    found = []
    for path, node in _walk(root, ""):
        for key in _keys(node):
            name, state = layer_name(f"{path}/{key}".lstrip("/")), node[state_scope(key)]
            found.append(QuantizedTensor(name, the_config(state, name), node, key))
            if state.get(ACTIVATION, {}).get(CONFIG):
                name += INPUT
                config = the_config(state[ACTIVATION], name)
                found.append(QuantizedTensor(name, config, node, key))
    return found


def _keys(node: Any) -> List[str]:
    """The names of the quantized weights in a scope, in building order."""
    return [
        _weights_of(name)
        for name, child in node.items()
        if _is_state_of(node, name, child) and child.get(CONFIG)
    ]


def _walk(scope: Any, path: str) -> Iterator[Tuple[str, Any]]:
    yield path, scope
    for name, child in scope.items():
        if isinstance(child, dict) and not _is_state_of(scope, name, child):
            yield from _walk(child, f"{path}/{name}" if path else name)


def _is_state(name: str) -> bool:
    return name == STATE_SCOPE or name.endswith(f".{STATE_SCOPE}")


def _is_state_of(scope: Any, name: str, child: Any) -> bool:
    """Whether an entry of a scope is the state of weights in it."""
    return isinstance(child, dict) and _is_state(name) and _weights_of(name) in scope


def state_paths(names: Iterable[str]) -> List[str]:
    """Those of a net's parameters that are state of this package, not of the network.

    State lies in a scope beside the weights whose name it bears; the number of
    steps in a scope of its own.
    """
    names = list(names)
    known = set(names)
    return [name for name in names if _is_state_path(name.split("/"), known)]


def _is_state_path(parts: List[str], names: Set[str]) -> bool:
    if "/".join(parts[-2:]) in OF_TRAINING:
        return True
    return any(
        _is_state(part) and "/".join([*parts[:i], _weights_of(part)]) in names
        for i, part in enumerate(parts[:-1])
    )


def _weights_of(state: str) -> str:
    """The inverse of :func:`state_scope`."""
    return "W" if state == STATE_SCOPE else state[: -len(f".{STATE_SCOPE}")]


def scopes_around(scope: Any) -> List[Any]:
    """``scope`` and the scopes that enclose it, from NNabla's root scope on."""

    def search(node: Any, trail: List[Any]) -> Optional[List[Any]]:
        trail = [*trail, node]
        if node is scope:
            return trail
        children = (child for child in node.values() if isinstance(child, dict))
        return next((found for child in children if (found := search(child, trail))), None)

    for root in (nnabla.parameter.root_scope, nn.parameter.get_current_parameter_scope()):
        found = search(root, [])
        if found:
            return found
    return [scope]


def scope_path(scope: Any) -> str:
    """The path of ``scope`` from NNabla's root scope, for messages."""
    for path, node in _walk(nnabla.parameter.root_scope, ""):
        if node is scope:
            return path or "(the root scope)"
    return "(a local scope)"
