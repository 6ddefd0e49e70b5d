"""The DQA layers of a parameter scope: what they consist of and where their state lives.

A layer's arrays are parameters beside its weights::

    conv1/conv/W                  the float weights
    conv1/conv/dqa/alpha          attention, learned (rule Attention)
    conv1/conv/dqa/temperature    T
    conv1/conv/dqa/hard           zeros, or one-hot: this quantizer alone
    conv1/conv/dqa/quantizers     bit widths and a checksum, so that state is never mistaken

Weights of another name, as files of other origin have them, keep their state in
a scope called like them: ``fc/weight`` in ``fc/weight.dqa/...``.

Which quantizers and which rule cannot be an array. It is remembered with the
scope it belongs to and forgotten when the scope is cleared.
"""

from __future__ import annotations

import dataclasses
import json
import weakref
import zlib
from functools import cached_property
from typing import Any, Dict, FrozenSet, Iterator, List, NamedTuple, Optional, Tuple

import nnabla as nn
import nnabla.functions as F
import nnabla.parameter
import numpy as np

from nnabla_dqa.backends.portable import common_axis
from nnabla_dqa.mixing import MixingRule, mixing_rule_from_json
from nnabla_dqa.quantization import Quantizer, quantizer_from_json
from nnabla_dqa.quantization.graph_ops import Variable

STATE_SCOPE = "dqa"
FINGERPRINT = "quantizers"
"""The K bit widths of a layer and a checksum of its quantizers: what its state belongs to."""


class AttentionWarning(UserWarning):
    """A layer's attention does not do what its user probably expects."""


@dataclasses.dataclass(frozen=True)
class Mixture:
    """K quantizers from the lowest to the highest bit width, and the rule that mixes them.

    The first is the target: the quantizer that remains.

    Raises:
        ValueError: There is none, they are not sorted by bits, two have the
            same bits, their channel axes differ, or the rule refuses them.
    """

    quantizers: Tuple[Quantizer, ...]
    mixing: MixingRule

    def __post_init__(self) -> None:
        if not self.quantizers:
            raise ValueError(
                "no quantizers given; give for example MinMax(2), MinMax(4), MinMax(8)"
            )
        for q in self.quantizers:
            if not isinstance(q, Quantizer):
                raise ValueError(f"{q!r} is not a quantizer such as MinMax(2)")
        bits = [q.bits for q in self.quantizers]
        if len(set(bits)) != len(bits):
            raise ValueError(f"bit widths must differ; got {bits} from {self}")
        if sorted(bits) != bits:
            raise ValueError(
                f"quantizers must go from the lowest to the highest bit width, because the first "
                f"is the one that remains; got {bits}, write {sorted(bits)}"
            )
        if not isinstance(self.mixing, MixingRule):
            raise ValueError(f"mixing={self.mixing!r} is not a mixing rule such as Attention()")
        common_axis(self.quantizers)
        self.mixing.check(self.quantizers)

    def __str__(self) -> str:
        return ", ".join(str(q) for q in self.quantizers)

    @property
    def target(self) -> Quantizer:
        """The quantizer of the lowest bit width."""
        return self.quantizers[0]

    @cached_property
    def learned_names(self) -> FrozenSet[str]:
        """The arrays of a layer's state that a solver trains."""
        entries = self.mixing.state(self.quantizers)
        return frozenset(name for name, entry in entries.items() if entry.learned)

    def fingerprint(self) -> np.ndarray:
        """K bit widths and a 24-bit checksum of the quantizers, exact in float32."""
        text = json.dumps([q.to_json() for q in self.quantizers], sort_keys=True)
        checksum = zlib.crc32(text.encode()) & 0xFFFFFF
        return np.array([*(q.bits for q in self.quantizers), checksum], np.float32)

    def to_json(self) -> Dict[str, Any]:
        """The mixture as JSON values."""
        return {
            "quantizers": [q.to_json() for q in self.quantizers],
            "mixing": self.mixing.to_json(),
        }

    @classmethod
    def from_json(cls, data: Dict[str, Any]) -> Mixture:
        """The inverse of :meth:`to_json`; raises ValueError on anything else."""
        return cls(
            tuple(quantizer_from_json(q) for q in data["quantizers"]),
            mixing_rule_from_json(data["mixing"]),
        )

    def shares(self, state: Dict[str, Variable]) -> Optional[Variable]:
        """``a`` of shape (1, K) as a graph, None for K = 1.

        ``(1 - sum(hard)) * rule + hard``: exactly one-hot once ``hard`` is.
        """
        count = len(self.quantizers)
        if count == 1:
            return None
        # Not in place: deploying lets this leaf see another array for a moment.
        hard = F.reshape(state["hard"], (1, count), inplace=False)
        soft_share = F.r_sub_scalar(F.sum(hard, axis=1, keepdims=True), 1.0)
        return F.add2(F.mul2(self.mixing.shares(state, count), soft_share), hard)


@dataclasses.dataclass(frozen=True)
class Layer:
    """A DQA layer that has been built.

    ``name`` is the path of its scope below the scope it was looked up in, such
    as ``"conv1/conv"``; ``function`` NNabla's name of what uses the weights;
    ``key`` the name of the weights in ``scope``.
    """

    name: str
    function: str
    mixture: Mixture
    recorded: bool
    fixed: bool
    scope: Any = dataclasses.field(repr=False, compare=False)
    key: str = "W"

    @property
    def weight(self) -> Any:
        """The float weights, ``nnabla.Variable``."""
        return self.scope[self.key]

    @property
    def weight_name(self) -> str:
        """The path of the weights below the scope the layer was looked up in."""
        return weight_name(self.name, self.key)

    @property
    def state(self) -> Dict[str, Any]:
        """The arrays of the mixing rule and ``hard``; empty with one quantizer."""
        if len(self.mixture.quantizers) == 1:
            return {}
        return {name: v for name, v in self.arrays.items() if name != FINGERPRINT}

    @property
    def arrays(self) -> Dict[str, Any]:
        """All that is registered beside the weights, also what a checkpoint left there."""
        return dict(self.scope.get(state_scope(self.key), {}))

    @property
    def learned(self) -> Dict[str, Any]:
        """The entries of :attr:`state` that a solver trains."""
        names = self.mixture.learned_names
        return {name: v for name, v in self.state.items() if name in names}

    @property
    def is_hard(self) -> bool:
        """Whether one quantizer alone is in use."""
        state = self.state
        return not state or bool(state["hard"].d.any())

    def attention(self) -> np.ndarray:
        """The rule's shares, shape (K,), as if the layer were not hard; reads only."""
        return self.mixture.mixing.evaluate(self.state, len(self.mixture.quantizers))

    def shares_in_use(self) -> np.ndarray:
        """The shares that training uses now, shape (K,): attention, or one-hot once hard."""
        state = self.state
        return state["hard"].d.copy() if state and self.is_hard else self.attention()

    def mixed_weights(self) -> np.ndarray:
        """``sum_k a_k Q_k(W)`` with the shares in use, shaped like W; reads only.

        An ``apply_w`` of the user, which comes before the quantizers, is left out.
        """
        w = self.weight.d
        shares = self.shares_in_use()
        parts = [a * q.quantize(w) for a, q in zip(shares, self.mixture.quantizers)]
        total: np.ndarray = np.sum(parts, axis=0)
        return total


def layer_name(weight: str) -> str:
    """The layer's name by the path of its weights: ``conv1/conv`` for ``conv1/conv/W``."""
    return weight[: -len("/W")] if weight.endswith("/W") else weight


def weight_name(layer: str, key: str = "W") -> str:
    """The inverse of :func:`layer_name`."""
    return f"{layer}/W" if key == "W" and layer != "W" else layer


def state_scope(key: str = "W") -> str:
    """The scope, beside weights called ``key``, of the layer's state."""
    return STATE_SCOPE if key == "W" else f"{key}.{STATE_SCOPE}"


class _Record(NamedTuple):
    scope: Any
    function: str
    mixture: Mixture
    recorded: bool
    fixed: bool


_RECORDS: Dict[int, Dict[str, _Record]] = {}
"""By the id of a scope: a record (with a weak reference to the scope) for each of its weights."""


def remember(
    scope: Any, function: str, mixture: Mixture, recorded: bool, fixed: bool, key: str = "W"
) -> None:
    """Note that ``scope[key]`` (of a parameter scope's dictionary) are the weights of a DQA layer.

    ``recorded``: built last with ``nn.ProtoVariable``; ``fixed``: with
    ``fix_parameters``.

    Raises:
        ValueError: It was built with another mixture before.
    """
    identity = id(scope)
    records = _RECORDS.setdefault(identity, {})
    known = records.get(key)
    if known is not None and known.mixture != mixture:
        raise ValueError(
            f"the layer exists already with {known.mixture} mixed by {known.mixture.mixing}, not "
            f"{mixture} mixed by {mixture.mixing}; use another name or call nn.clear_parameters()"
        )
    reference = weakref.ref(scope, lambda _: _RECORDS.pop(identity, None))
    records[key] = _Record(reference, function, mixture, recorded, fixed)


def find_layers(scope: Any = None) -> List[Layer]:
    """The DQA layers below a parameter scope (default: the current one), in building order."""
    root = nn.parameter.get_current_parameter_scope() if scope is None else scope
    return [
        Layer(layer_name(f"{path}/{key}".lstrip("/")), *record[1:], node, key)
        for path, node in _walk(root, "")
        for key, record in _RECORDS.get(id(node), {}).items()
        if key in node
    ]


def _walk(scope: Any, path: str) -> Iterator[Tuple[str, Any]]:
    yield path, scope
    for name, child in scope.items():
        if isinstance(child, dict):
            yield from _walk(child, f"{path}/{name}" if path else name)


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
