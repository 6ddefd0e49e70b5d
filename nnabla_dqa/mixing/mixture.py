"""What a tensor goes through: its quantizers, the rule that mixes them, and which one remains."""

from __future__ import annotations

import dataclasses
from functools import cache, cached_property
from types import MappingProxyType
from typing import Any, Dict, List, Mapping, Optional, Sequence, Tuple

import nnabla.functions as F
import numpy as np

from nnabla_dqa._util.checks import is_int
from nnabla_dqa.mixing.base import MixingRule
from nnabla_dqa.mixing.registry import mixing_rule_from_json
from nnabla_dqa.mixing.single import Single
from nnabla_dqa.quantization import Quantizer, StateEntry, quantizer_from_json
from nnabla_dqa.quantization.base import FIRST, SWITCH, State, common_axis, unset_names
from nnabla_dqa.quantization.encoding import RowLayout
from nnabla_dqa.quantization.graph_ops import Variable

HARD = "hard"
"""The array that is zeros, or one-hot: this quantizer alone."""
CHOSEN = "chosen"
"""The array, of weights whose bits a budget chooses, that is one-hot: this quantizer remains."""


def _hint(given: Any) -> str:
    """What was meant by something that is no quantizer."""
    if isinstance(given, str):
        return '; notations such as "minmax:2,4,8" are for recipes and dqa.convert'
    if isinstance(given, (list, tuple)) and any(isinstance(q, Quantizer) for q in given):
        return "; give those in the list one by one"
    return ""


@dataclasses.dataclass(frozen=True)
class Mixture:
    """K quantizers, lowest bit widths first, the rule that mixes them, and the target.

    Args:
        quantizers: K of them. Equal bit widths are allowed.
        mixing: The rule.
        target: Index of the quantizer that remains in the hard phase and is
            deployed; default: the first, which has the lowest bit width.

    Raises:
        ValueError: There is no quantizer, they are not sorted by bits, two are
            equal, their channel axes differ, there is no such target, or the
            rule refuses them.

    Examples:
        >>> import nnabla_dqa as dqa
        >>> two = dqa.Attention(normalize="none")
        >>> mixture = dqa.Mixture((dqa.MinMax(2), dqa.SAWB(2)), two, target=1)
        >>> mixture.target_quantizer
        SAWB(bits=2, channel_axis=None)
    """

    quantizers: Tuple[Quantizer, ...]
    mixing: MixingRule
    target: int = 0

    def __post_init__(self) -> None:
        if not self.quantizers:
            raise ValueError(
                "no quantizers given; give for example MinMax(2), MinMax(4), MinMax(8)"
            )
        for q in self.quantizers:
            if not isinstance(q, Quantizer):
                raise ValueError(f"{q!r} is not a quantizer such as MinMax(2){_hint(q)}")
        bits = [q.bits for q in self.quantizers]
        if sorted(bits) != bits:
            raise ValueError(
                f"quantizers must go from the lowest to the highest bit width, because the penalty "
                f"rises with their order; got {bits}, write {sorted(bits)}"
            )
        twice = [q for k, q in enumerate(self.quantizers) if q in self.quantizers[:k]]
        if twice:
            raise ValueError(f"quantizers must differ; got {twice[0]} twice")
        if not isinstance(self.mixing, MixingRule):
            raise ValueError(f"mixing={self.mixing!r} is not a mixing rule such as Attention()")
        for value in (*self.quantizers, self.mixing):
            try:
                hash(value)
            except TypeError as error:
                raise ValueError(f"{value}: {error}; use tuples for its fields") from None
        count = len(self.quantizers)
        if not is_int(self.target) or self.target not in range(count):
            raise ValueError(
                f"target={self.target!r} is not the index of one of {count} quantizers, "
                f"0 to {count - 1}"
            )
        object.__setattr__(self, "target", int(self.target))
        if count == 1:
            # Whatever rule was named has nothing to decide; the layer is the same.
            object.__setattr__(self, "mixing", Single())
        common_axis(self.quantizers)
        self.mixing.check(self.quantizers)

    def __str__(self) -> str:
        return ", ".join(str(q) for q in self.quantizers)

    @property
    def is_mixed(self) -> bool:
        """Whether there is more than one quantizer."""
        return len(self.quantizers) > 1

    @property
    def target_quantizer(self) -> Quantizer:
        """The quantizer that remains."""
        return self.quantizers[self.target]

    def alone(self, index: int) -> np.ndarray:
        """The one-hot coefficients of one quantizer, shape (K,)."""
        row: np.ndarray = np.eye(len(self.quantizers), dtype=np.float32)[index]
        return row

    def is_choice(self, array: np.ndarray) -> bool:
        """Whether an array is one-hot over the quantizers, shape (K,)."""
        return array.shape == (len(self.quantizers),) and sorted(array)[::-1] == [
            float(k == 0) for k in range(array.size)
        ]

    def state_layout(
        self, shape: Sequence[int], tensor: str = "weight"
    ) -> Mapping[str, StateEntry]:
        """The arrays of a weight of this shape, or of an activation, by their paths in its scope.

        The rule's arrays and ``hard`` have plain names; those of quantizer k
        are ``"k/name"``, and ``"pact/name"`` where all of class ``PACT`` share one. For activations
        ``"k/first"`` is where a training update finds the first values of learned arrays.

        Raises:
            ValueError: Quantizers that share an array want it differently.
        """
        return _layout(self, tuple(shape), tensor)

    def quantizer_paths(self, index: int) -> Tuple[str, ...]:
        """The paths of the arrays of one quantizer."""
        q = self.quantizers[index]
        return tuple(_path(index, q, name, e) for name, e in q.state(1).items())

    @cached_property
    def has_quantizer_state(self) -> bool:
        """Whether a quantizer keeps arrays of its own."""
        return any(q.state(1) for q in self.quantizers)

    @cached_property
    def switches(self) -> Tuple[str, ...]:
        """The paths of the arrays that soft quantizers turn hard by."""
        return tuple(f"{k}/{SWITCH}" for k, q in enumerate(self.quantizers) if q.is_soft)

    def is_hard(self, state: Mapping[str, Any]) -> bool:
        """Whether the levels of one quantizer alone are in use, by a tensor's state."""
        mixed = self.is_mixed and not state[HARD].d.any()
        return not mixed and all(state[path].d.any() for path in self.switches)

    def quantizer_states(self, state: Mapping[str, Any]) -> List[Dict[str, Any]]:
        """The arrays of each quantizer by name, out of a layer's whole state."""
        if not self.has_quantizer_state:
            return []
        return [
            {
                name: state[path]
                for name, entry in (*q.state(1).items(), (FIRST, None))
                for path in [_path(k, q, name, entry)]
                if path in state
            }
            for k, q in enumerate(self.quantizers)
        ]

    def coefficients(self, state: State) -> Optional[Variable]:
        """``a`` of shape (1, K) as a graph, None for K = 1.

        ``(1 - sum(hard)) * rule + hard``: exactly one-hot once ``hard`` is.
        """
        if not self.is_mixed:
            return None
        count = len(self.quantizers)
        # Not in place: deploying lets this leaf refer to another array for a moment.
        hard = F.reshape(state[HARD], (1, count), inplace=False)
        relaxed = F.r_sub_scalar(F.sum(hard, axis=1, keepdims=True), 1.0)
        rule = self.mixing.coefficients(state, count, self.target)
        return F.add2(F.mul2(rule, relaxed), hard)

    def to_json(self) -> Dict[str, Any]:
        """The mixture as JSON values."""
        return {
            "quantizers": [q.to_json() for q in self.quantizers],
            "mixing": self.mixing.to_json(),
            "target": self.target,
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Mixture:
        """The inverse of :meth:`to_json`; raises ValueError on anything else."""
        return cls(
            tuple(quantizer_from_json(q) for q in data["quantizers"]),
            mixing_rule_from_json(data["mixing"]),
            data.get("target", 0),
        )


def rule_warnings(mixtures: Mapping[str, Mixture]) -> List[str]:
    """What mixing rules warn of in the layers of these names, each text once."""
    layers: Dict[str, List[str]] = {}
    for name, mixture in mixtures.items():
        text = mixture.mixing.check(mixture.quantizers)
        if text:
            layers.setdefault(text, []).append(name)
    return [
        f"{'all layers' if len(names) == len(mixtures) else 'layer ' + ', '.join(names)}: {text}"
        for text, names in layers.items()
    ]


def _path(k: int, quantizer: Quantizer, name: str, entry: Optional[StateEntry]) -> str:
    shared = entry is not None and entry.shared
    return f"{type(quantizer).__name__.lower() if shared else k}/{name}"


@cache
def _layout(mixture: Mixture, shape: Tuple[int, ...], tensor: str) -> Mapping[str, StateEntry]:
    count = len(mixture.quantizers)
    layout = dict(mixture.mixing.state(mixture.quantizers)) if count > 1 else {}
    for name in layout:
        if name in (HARD, CHOSEN, "config", "activation") or "/" in name:
            raise ValueError(f"{mixture.mixing} may not call an array of its state {name!r}")
    if count > 1:
        layout[HARD] = StateEntry(np.zeros(count, np.float32), "schedule")
    for k, q in enumerate(mixture.quantizers):
        rows = RowLayout.of(shape, q.axis).rows
        for name, entry in q.state(rows).items():
            path = _path(k, q, name, entry)
            if repr(layout.setdefault(path, entry)) != repr(entry):
                others = ", ".join(str(q) for q in mixture.quantizers)
                raise ValueError(f"{others} share {path!r}, which they want to be different")
        unset = unset_names(q) if tensor == "activation" else ()
        if unset:
            first = np.zeros((rows, len(unset) + 1), np.float32)
            layout[f"{k}/{FIRST}"] = StateEntry(first, "running", momentum=1.0)
    return MappingProxyType(layout)
