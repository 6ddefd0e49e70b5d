"""Which layers get which quantizers: rules by name glob."""

from __future__ import annotations

import dataclasses
from fnmatch import fnmatchcase
from pathlib import Path
from typing import (
    Any,
    Dict,
    FrozenSet,
    List,
    Mapping,
    NamedTuple,
    Optional,
    Protocol,
    Sequence,
    Tuple,
    Union,
)

from nnabla_dqa._util.files import PathLike, parse_yaml, read_yaml
from nnabla_dqa._util.registry import UnknownTypeError, field_values
from nnabla_dqa.layers.config import ACTIVATION, check_place
from nnabla_dqa.layers.scopes import make_mixture
from nnabla_dqa.mixing import MIXING_RULES, MixingRule
from nnabla_dqa.mixing.mixture import Mixture
from nnabla_dqa.quantization import Quantizer
from nnabla_dqa.quantization.encoding import RowLayout
from nnabla_dqa.quantization.notation import QuantizerSet, quantizer_set

DEFAULT = "minmax:2,4,8"
DEFAULT_RULE = "(default)"
_LISTED = 30


class Candidate(Protocol):
    """A layer that rules can choose."""

    @property
    def name(self) -> str: ...
    @property
    def names(self) -> Tuple[str, ...]: ...
    @property
    def shape(self) -> Tuple[int, ...]: ...
    @property
    def channel_axis(self) -> int: ...
    @property
    def function(self) -> str: ...
    @property
    def reads_input(self) -> bool: ...
    @property
    def reads(self) -> FrozenSet[Any]: ...


class Assignment(NamedTuple):
    """What a layer's weights go through, the rule that said so, and what its input goes through.

    ``activations`` is None where what enters the layer stays float, or is what enters the
    layer ``input_of`` too and is quantized there.
    """

    mixture: Mixture
    rule: str
    activations: Optional[Mixture] = None
    input_of: str = ""


@dataclasses.dataclass(frozen=True)
class Rule:
    """The layers whose name matches ``pattern`` get ``quantizers``.

    Args:
        pattern: A glob (``*``, ``?``, ``[abc]``; case matters) for the layer's
            name (``conv1/conv``), its weights (``conv1/conv/W``) or, in a
            file, a function that uses them (``Convolution_2``).
        quantizers: A notation such as ``"minmax:2,4,8"`` or ``"float"``,
            quantizers, or mappings such as ``{"type": "SAWB", "bits": 2}``
            (:func:`~nnabla_dqa.quantization.notation.quantizer_set`).
        mixing: A mixing rule, or what :func:`mixing_rule` reads. Default:
            attention, or Single for one quantizer.
        activations: Likewise for what enters the layers, also where that is the network's
            input; ``"float"``: it stays as it is. Default: what :class:`Rules` say. A layer
            whose weights are all float keeps float activations.

    Raises:
        ValueError: The notation cannot be read.

    Examples:
        >>> import nnabla_dqa as dqa
        >>> rules = [dqa.Rule("conv1*", "float"), dqa.Rule("*", "sawb:2,4,8")]
        >>> [str(rule.quantizers.quantizers[0]) for rule in rules]
        ['FullPrecision()', 'SAWB(bits=2, channel_axis=None)']
    """

    pattern: str
    quantizers: Any
    mixing: Any = None
    activations: Any = None

    def __post_init__(self) -> None:
        if not isinstance(self.pattern, str) or not self.pattern:
            raise ValueError(f"rule: pattern={self.pattern!r} is not a name glob such as 'conv*'")
        object.__setattr__(self, "quantizers", quantizer_set(self.quantizers))
        object.__setattr__(self, "mixing", mixing_rule(self.mixing))
        object.__setattr__(self, "activations", _activations(self.activations))

    def to_json(self) -> Dict[str, Any]:
        """The rule as JSON values, as :meth:`Rules.from_yaml` reads them."""
        mixing = {} if self.mixing is None else {"mixing": self.mixing.to_json()}
        return {"layers": self.pattern, "quantizers": self.quantizers.to_json(), **mixing}

    def matches(self, layer: Candidate) -> bool:
        """Whether the pattern is, or matches, one of the layer's names."""
        return _names(layer, self.pattern)

    def mixture_for(self, layer: Candidate) -> Mixture:
        """The mixture for one layer.

        Raises:
            ValueError: Not a valid set, or the rule refuses it.
        """
        quantizers = self.quantizers.for_axis(layer.channel_axis)
        mixing = None if len(quantizers) == 1 else self.mixing
        return make_mixture(*quantizers, mixing=mixing)

    def activations_for(self, default: Optional[QuantizerSet], own: bool) -> Optional[Mixture]:
        """The mixture of what enters a layer, None for none.

        Args:
            default: Quantizers where the rule names none.
            own: Only what the rule itself says counts.

        Raises:
            ValueError: Not a valid set, or of weights.
        """
        found = self.activations or (None if own else default)
        if found is None or all(q.is_float for q in found.quantizers):
            return None
        mixing = None if len(found.quantizers) == 1 else self.mixing
        mixture = make_mixture(*found.quantizers, mixing=mixing)
        check_place(mixture, ACTIVATION)
        return mixture


@dataclasses.dataclass(frozen=True)
class Rules:
    """Rules, and the quantizers of the layers that no rule names.

    Args:
        quantizers: Those of all other layers, in any form that a rule takes;
            default ``"minmax:2,4,8"``, the DQA paper's.
        rules: Each must match a layer, and no two the same.
        mixing: The mixing rule where a rule names none.
        activations: Quantizers of what enters the layers, where a rule names none; the
            network's own input stays as it is. None: activations stay float. What several
            layers read is quantized once if they have the same quantizers and mixing rule.
        keep_activations: Globs of layers at whose input nothing is quantized.

    Examples:
        >>> import nnabla_dqa as dqa
        >>> first = dqa.Rule("conv1*", "float")
        >>> rules = dqa.Rules("sawb:2,4,8", rules=[first], activations="pact:2,4,8")
        >>> _ = dqa.convert_file("lenet.nnp", "lenet_dqa.nnp", rules)
    """

    quantizers: Any = DEFAULT
    rules: Tuple[Rule, ...] = ()
    mixing: Any = None
    activations: Any = None
    keep_activations: Tuple[str, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "quantizers", quantizer_set(self.quantizers))
        object.__setattr__(self, "mixing", mixing_rule(self.mixing))
        object.__setattr__(self, "rules", tuple(self.rules))
        object.__setattr__(self, "activations", _activations(self.activations))
        object.__setattr__(self, "keep_activations", tuple(self.keep_activations))
        given = (self.activations, *(rule.activations for rule in self.rules))
        if self.keep_activations and all(found is None for found in given):
            raise ValueError("keep_activations is for nothing: no activations are given")

    @classmethod
    def of(cls, rules: RulesLike) -> Rules:
        """Rules from a notation or quantizers for all layers, a sequence of rules, or rules."""
        if isinstance(rules, Rules):
            return rules
        if isinstance(rules, Mapping) and "type" not in rules:
            return cls.from_mapping(rules)
        if isinstance(rules, (str, QuantizerSet, Mapping, Quantizer)):
            return cls(rules)
        given: Tuple[Any, ...] = tuple(rules)
        if all(isinstance(rule, Rule) for rule in given):
            return cls(rules=given)
        return cls(given)

    @classmethod
    def from_yaml(cls, path: PathLike) -> Rules:
        """Rules from a YAML file.

        It is a mapping with ``quantizers`` (a notation such as
        ``minmax:2,4,8``, a mapping such as ``{type: SAWB, bits: 2}``, or a
        list of these), ``mixing`` (a name such as ``attention`` or
        ``binary_relax``, or ``{type: Attention, init: inverse_bits}``) and
        ``rules``, a list of mappings with ``layers`` (a glob or a list of
        them), ``quantizers``, ``mixing`` and ``activations``; and ``activations`` and
        ``keep_activations`` (a glob or a list of them). All are optional but ``layers`` and
        ``quantizers`` of a rule.

        Raises:
            ValueError: Names the file, the key and what is allowed.
            OSError: The file cannot be read.
        """
        path = Path(path)
        content = read_yaml(path)
        try:
            return cls.from_mapping(content if content is not None else {})
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None

    @classmethod
    def from_mapping(cls, content: Any) -> Rules:
        """Rules from what :meth:`from_yaml` reads; raises ValueError."""
        keys = ("quantizers", "mixing", "rules", "activations", "keep_activations")
        _check_keys(content, keys, "the rules")
        rules = content.get("rules", [])
        if not isinstance(rules, (list, tuple)):
            raise ValueError(f"key 'rules' must be a list of rules; got {rules!r}")
        made: List[Rule] = []
        for i, entry in enumerate(rules):
            where = f"rule {i + 1}"
            if isinstance(entry, Rule):
                made.append(entry)
                continue
            _check_keys(entry, ("layers", "quantizers", "mixing", "activations"), where)
            patterns = _patterns(entry.get("layers"), "layers", where)
            quantizers = _quantizers(entry.get("quantizers"), where)
            mixing = _mixing(entry.get("mixing"), where)
            inputs = _optional(entry, "activations", where)
            made += [Rule(pattern, quantizers, mixing, inputs) for pattern in patterns]
        where = "the rules"
        default = _quantizers(content.get("quantizers", DEFAULT), where)
        mixing = _mixing(content.get("mixing"), where)
        kept = content.get("keep_activations")
        globs = () if kept is None else tuple(_patterns(kept, "keep_activations", where))
        return cls(default, tuple(made), mixing, _optional(content, "activations", where), globs)

    def assign(self, layers: Sequence[Candidate]) -> Dict[str, Assignment]:
        """The mixture of every layer, by the layer's name.

        What several layers read is quantized once where all of them want the same: the first
        of them owns the quantizers, the others name it in ``input_of``.

        Raises:
            ValueError: A rule matches nothing, two match the same layer (the
                message lists the layers there are), or a mixture is refused.
        """
        chosen: Dict[str, Rule] = {}
        for rule in self.rules:
            hits = [layer for layer in layers if rule.matches(layer)]
            if not hits:
                raise ValueError(
                    f"rule {rule.pattern!r} matches no layer; the layers are: {_listed(layers)}"
                )
            for layer in hits:
                if layer.name in chosen:
                    raise ValueError(
                        f"rules {chosen[layer.name].pattern!r} and {rule.pattern!r} both match "
                        f"layer {layer.name}; the layers are: {_listed(layers)}"
                    )
                chosen[layer.name] = rule
        for pattern in self.keep_activations:
            if not any(_names(layer, pattern) for layer in layers):
                raise ValueError(
                    f"keep_activations {pattern!r} matches no layer; the layers are: "
                    f"{_listed(layers)}"
                )
        assigned = {layer.name: self._assigned(layer, chosen.get(layer.name)) for layer in layers}
        owners: Dict[Any, str] = {}
        for layer in layers:
            found = assigned[layer.name]
            if found.activations is not None:
                owner = owners.setdefault((layer.reads, found.activations), layer.name)
                if owner != layer.name:
                    assigned[layer.name] = found._replace(activations=None, input_of=owner)
        return assigned

    def _assigned(self, layer: Candidate, rule: Optional[Rule]) -> Assignment:
        used = rule or Rule("*", self.quantizers)
        if used.mixing is None:
            used = dataclasses.replace(used, mixing=self.mixing)
        try:
            mixture = used.mixture_for(layer)
            for quantizer in mixture.quantizers:
                RowLayout.of(layer.shape, quantizer.axis)
            activations = None
            kept = any(_names(layer, pattern) for pattern in self.keep_activations)
            indices = "Embed" in layer.function
            if not (kept or indices or all(q.is_float for q in mixture.quantizers)):
                activations = used.activations_for(self.activations, layer.reads_input)
        except ValueError as error:
            raise ValueError(f"layer {layer.name}: {error}") from None
        return Assignment(mixture, rule.pattern if rule else DEFAULT_RULE, activations)


RulesLike = Union[str, QuantizerSet, Mapping[str, Any], Sequence[Rule], Sequence[Quantizer], Rules]


def mixing_rule(value: Any) -> Optional[MixingRule]:
    """The mixing rule that a value of YAML, the command line or Python stands for.

    It is a rule, None, or

    - the name of a registered class (case, ``_`` and ``-`` do not matter), with
      options where it has any: ``attention``, ``attention:init=uniform,eps=0.01``
    - a mapping such as ``{type: Attention, init: inverse_bits}``, also as text.

    Raises:
        ValueError: It is none of these, or there is no such rule or field.
    """
    if value is None or isinstance(value, MixingRule):
        return value
    if isinstance(value, str) and value.lstrip().startswith("{"):
        value = parse_yaml(value)
    if isinstance(value, Mapping):
        return MIXING_RULES.from_json(value)
    if not isinstance(value, str):
        raise ValueError(f"mixing must be a name or {{type: ..., ...}}; got {value!r}")
    name, colon, options = value.strip().partition(":")
    try:
        cls = MIXING_RULES.find(name)
    except UnknownTypeError:
        known = ", ".join(sorted(MIXING_RULES.types))
        raise UnknownTypeError(f"mixing {name!r} is none of {known}{MIXING_RULES.hint}") from None
    return MIXING_RULES.make(cls, field_values(options.split(",")) if colon else {})


def _mixing(value: Any, where: str) -> Optional[MixingRule]:
    try:
        return mixing_rule(value)
    except ValueError as error:
        raise ValueError(f"{where}: key 'mixing': {error}") from None


def _quantizers(value: Any, where: str) -> QuantizerSet:
    try:
        return quantizer_set(value)
    except ValueError as error:
        raise ValueError(f"{where}: key 'quantizers': {error}") from None


def _optional(content: Any, key: str, where: str) -> Optional[QuantizerSet]:
    value = content.get(key)
    try:
        return _activations(value)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None


def _activations(value: Any) -> Optional[QuantizerSet]:
    if value is None:
        return None
    found = quantizer_set(value)
    found = found._replace(quantizers=tuple(q.at_input() for q in found.quantizers))
    own_axis = [q for q in found.quantizers if q.axis is not None and not q.rows_are_channels]
    if found.per_channel or own_axis:
        raise ValueError(f"activations {value!r}: they have one range, not one per channel")
    return found


def _names(layer: Candidate, pattern: str) -> bool:
    """Whether the pattern is, or matches, one of the layer's names."""
    return any(name == pattern or fnmatchcase(name, pattern) for name in layer.names)


def _patterns(value: Any, key: str, where: str) -> List[str]:
    patterns = [value] if isinstance(value, str) else value
    texts = isinstance(patterns, (list, tuple)) and all(isinstance(p, str) for p in patterns)
    if not texts or not patterns:
        raise ValueError(f"{where}: key {key!r} must be a name glob or a list of them")
    return list(patterns)


def _check_keys(content: Any, allowed: Tuple[str, ...], where: str) -> None:
    if not isinstance(content, Mapping):
        raise ValueError(f"{where} must be a mapping with the keys {', '.join(allowed)}")
    for key in content:
        if key not in allowed:
            raise ValueError(f"{where}: unknown key {key!r}; allowed: {', '.join(allowed)}")


def _listed(layers: Sequence[Candidate]) -> str:
    names = [layer.name for layer in layers[:_LISTED]]
    more = len(layers) - len(names)
    return ", ".join(names) + (f" and {more} more" if more else "") if names else "(none)"
