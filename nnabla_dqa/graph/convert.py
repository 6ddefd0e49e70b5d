"""A live graph whose weights go through DQA mixtures: model code stays as it is."""

from __future__ import annotations

import contextlib
import dataclasses
from typing import (
    Any,
    Dict,
    FrozenSet,
    Iterator,
    List,
    Mapping,
    NamedTuple,
    Optional,
    Sequence,
    Set,
    Tuple,
    Union,
)

import nnabla as nn

from nnabla_dqa._util.warn import warn
from nnabla_dqa.graph.traverse import LiveGraph, again
from nnabla_dqa.layers.build import mix_activations, mix_weights
from nnabla_dqa.layers.functions import CHANNEL_AXIS, WEIGHT_INPUT, channel_axis
from nnabla_dqa.layers.rules import Assignment, Rules, RulesLike
from nnabla_dqa.layers.tensors import find_quantized, layer_name
from nnabla_dqa.quantization.graph_ops import Variable

Variables = Union[Variable, Sequence[Variable]]


class _Found(NamedTuple):
    """A layer of a live graph, as rules see it."""

    weight: str
    variable: Variable
    functions: Tuple[Any, ...]
    reads_input: bool

    @property
    def reads(self) -> FrozenSet[Any]:
        """Its own name: in a live graph no two layers share what quantizes their inputs.

        Which layer comes first depends on the graph's outputs, and another graph of the same
        parameters, for evaluation or of one branch, may not have it.
        """
        return frozenset({self.name})

    @property
    def name(self) -> str:
        return layer_name(self.weight)

    @property
    def names(self) -> Tuple[str, ...]:
        return (self.name, self.weight)

    @property
    def shape(self) -> Tuple[int, ...]:
        return tuple(self.variable.shape)

    @property
    def channel_axis(self) -> int:
        return _axis(self.functions[0])

    @property
    def function(self) -> str:
        return "+".join(dict.fromkeys(f.info.type_name for f in self.functions))


def convert(outputs: Variables, rules: Optional[RulesLike] = None) -> Any:
    """Rebuild a graph so that its layers' weights go through mixtures of quantizers.

    The weights of Convolution, Affine, DepthwiseConvolution, Deconvolution,
    DepthwiseDeconvolution and Embed are the registered parameters they were;
    attention and temperature are registered beside them, as the ``dqa_``
    layers of model code do. Weights used several times get one attention. What
    several layers read is quantized once, with the state of the first of them,
    where the rules say the same of its activations.
    ``outputs`` and its graph stay as they are; inputs and parameters are
    shared. Convert the training and the evaluation graph with the same rules.

    Args:
        outputs: A variable, or several of one graph, made of parameters of the
            current scope.
        rules: A notation such as ``"minmax:2,4,8"`` (the default), quantizers,
            a list of :class:`Rule`, or :class:`Rules`. They see the layers'
            names (``conv1/conv``) and their weights' (``conv1/conv/W``).

    Returns:
        The new variable, or a tuple of them if several were given.

    Raises:
        ValueError: The graph has no layer or is converted already, a rule
            matches no layer or two match the same, or a function of Python
            follows a layer (it cannot be built anew).

    Warns:
        UserWarning: For each such function whose weights are left as they are.

    Examples:
        >>> import nnabla as nn, nnabla.functions as F, nnabla.parametric_functions as PF
        >>> import nnabla_dqa as dqa
        >>> x = nn.Variable((8, 1, 28, 28))
        >>> h = F.relu(PF.convolution(x, 16, (5, 5), name="conv1"))  # plain NNabla
        >>> y = PF.affine(h, 10, name="fc")
        >>> y = dqa.convert(y, [dqa.Rule("conv1*", "float"), dqa.Rule("fc*", "minmax:2,4,8")])
        >>> [layer.name for layer in dqa.find_quantized()]
        ['conv1/conv', 'fc/affine']
    """
    several = not isinstance(outputs, nn.Variable)
    roots: List[Variable] = list(outputs) if several else [outputs]
    graph = LiveGraph.of({str(i): v for i, v in enumerate(roots)})
    _check_plain(graph)
    found, skipped = _discover(graph)
    if not found:
        listed = "; ".join(skipped)
        raise ValueError(
            "convert: the graph has no layer whose weights are parameters of the current scope"
            + (f" ({listed})" if listed else "")
        )
    assigned = Rules.of(rules or ()).assign(found)
    for message in skipped:
        warn(f"convert: skipped: {message}", UserWarning)
    made = _Rebuild({layer.variable.data: layer for layer in found}, assigned).run(graph)
    results = tuple(made.get(v, v) for v in roots)
    return results if several else results[0]


@dataclasses.dataclass
class _Rebuild:
    layers: Mapping[Any, _Found]
    assigned: Mapping[str, Assignment]
    mixed: Dict[Any, Variable] = dataclasses.field(default_factory=dict)
    quantized: Dict[Tuple[str, Variable], Variable] = dataclasses.field(default_factory=dict)

    def run(self, graph: LiveGraph) -> Dict[Variable, Variable]:
        """New variables by the old ones they stand for."""
        made: Dict[Variable, Variable] = {}
        for function in graph.functions:
            inputs = [made.get(v, v) for v in function.inputs]
            is_layer = _weight(function) is not None and (inputs[WEIGHT_INPUT].data in self.layers)
            if is_layer:
                inputs[WEIGHT_INPUT] = self._weights(function)
                inputs[0] = self._input(function, inputs[0])
            elif not any(v in made for v in function.inputs):
                continue
            results = again(function, inputs, "convert")
            made.update(zip(function.outputs, results))
        return made

    def _weights(self, function: Any) -> Variable:
        w = function.inputs[WEIGHT_INPUT]
        if w.data not in self.mixed:
            layer = self.layers[w.data]
            with _scope_of(layer) as key:
                mixture, fixed = self.assigned[layer.name].mixture, not w.need_grad
                self.mixed[w.data] = mix_weights(
                    w, w, layer.function, mixture, fixed, key=key, name=layer.name
                )
        return self.mixed[w.data]

    def _input(self, function: Any, x: Variable) -> Variable:
        w = function.inputs[WEIGHT_INPUT]
        name = self.layers[w.data].name
        owner = self.assigned[name].input_of or name
        mixture = self.assigned[owner].activations
        if mixture is None:
            return x
        place = owner, function.inputs[0]
        if place not in self.quantized:
            layer = next(found for found in self.layers.values() if found.name == owner)
            with _scope_of(layer) as key:
                fixed = not w.need_grad
                self.quantized[place] = mix_activations(
                    x, layer.function, mixture, fixed, key, layer.name
                )
        return self.quantized[place]


@contextlib.contextmanager
def _scope_of(layer: _Found) -> Iterator[str]:
    """The scope of a layer's weights; gives their name in it."""
    path, _, key = layer.weight.rpartition("/")
    scope = None if path else nn.parameter.get_current_parameter_scope()
    with nn.parameter_scope(path, scope), nn.auto_forward(False):
        yield key


def _check_plain(graph: LiveGraph) -> None:
    for layer in find_quantized():
        if layer.weight.data not in graph.leaves:
            continue
        if any(v.parent is not None for v in graph.weights_of(layer)):
            raise ValueError(
                f"convert: layer {layer.name} of the graph is a DQA layer already ({layer.mixture})"
            )


def _discover(graph: LiveGraph) -> Tuple[List[_Found], List[str]]:
    names = {v.data: name for name, v in nn.get_parameters(grad_only=False).items()}
    uses: Dict[Any, List[Any]] = {}
    others: Dict[Any, str] = {}
    skipped: List[str] = []
    # What learned parameters have had a part in: the rest is the input, normalized perhaps.
    learned: Set[Any] = set()
    reading: Set[Any] = set()
    for function in graph.functions:
        w = _weight(function)
        if w is not None and function.inputs[0] not in learned:
            reading.add(w.data)
        if any(v in learned or (v.data in names and v.need_grad) for v in function.inputs):
            learned.update(function.outputs)
        for i, v in enumerate(function.inputs):
            if not (w is not None and i == WEIGHT_INPUT):
                others.setdefault(v.data, function.info.type_name)
        if w is None:
            continue
        if w.parent is None and w.data in names:
            uses.setdefault(w.data, []).append(function)
        else:
            what = "computed" if w.parent is not None else "not a parameter of the current scope"
            skipped.append(
                f"a {function.info.type_name} whose weights of shape {w.shape} are {what}"
            )
    found = []
    for array, functions in uses.items():
        axes: Set[int] = {_axis(f) % len(f.inputs[WEIGHT_INPUT].shape) for f in functions}
        if array in others:
            skipped.append(f"{names[array]}, which is also an input of a {others[array]}")
        elif len(axes) > 1:
            skipped.append(f"{names[array]}, shared by functions with other output channels")
        else:
            w = functions[0].inputs[WEIGHT_INPUT]
            found.append(_Found(names[array], w, tuple(functions), array in reading))
    return found, skipped


def _weight(function: Any) -> Optional[Variable]:
    if function.info.type_name in CHANNEL_AXIS and len(function.inputs) > WEIGHT_INPUT:
        return function.inputs[WEIGHT_INPUT]
    return None


def _axis(function: Any) -> int:
    return channel_axis(function.info.type_name, function.info.args.get("channel_last"))
