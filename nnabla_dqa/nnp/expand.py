"""A definition as text, with the mixture of every layer written out in standard functions.

The functions of a mixture are made once for each weight shape and set of
quantizers, turned to text once, and then repeated under other names: the text
form is by far the slowest part of writing large networks.
"""

from __future__ import annotations

from typing import Any, Dict, List, Mapping, Optional, Sequence, Tuple

import nnabla as nn
import numpy as np
from google.protobuf import text_encoding, text_format
from nnabla.utils import nnabla_pb2

from nnabla_dqa.backends import mixture as mix
from nnabla_dqa.layers.config import ACTIVATION, TensorConfig
from nnabla_dqa.layers.functions import WEIGHT_INPUT
from nnabla_dqa.layers.tensors import state_scope
from nnabla_dqa.mixing import Mixture
from nnabla_dqa.nnp.layers import FileLayer
from nnabla_dqa.nnp_format.archive import keep_only
from nnabla_dqa.nnp_format.parameters import Parameter
from nnabla_dqa.quantization.base import fitted_names, fitted_values

_SCOPE = "@layer@"
_WEIGHT = "@weight@"


def state_path(weight: str) -> str:
    """The path of the scope with the state of the layer with these weights."""
    scope, _, key = weight.rpartition("/")
    return f"{scope}/{state_scope(key)}".lstrip("/")


def mixed_name(weight: str) -> str:
    """The variable that holds the mixed weights."""
    return f"{state_path(weight)}/W"


def is_rewritten(mixture: Mixture) -> bool:
    """Whether the mixture needs functions at all: full precision alone does not."""
    return not all(q.is_float for q in mixture.quantizers)


def definition_text(
    definition: Any, layers: Sequence[FileLayer], mixtures: Mapping[str, Mixture]
) -> bytes:
    """The definition as NNabla's text, its layers' weights going through their mixtures.

    Args:
        definition: ``NNablaProtoBuf`` in which layers use their weights directly.
        layers: The layers to rewrite.
        mixtures: By the layers' names.
    """
    rewritten = [layer for layer in layers if is_rewritten(mixtures[layer.name])]
    templates = _Templates()
    rest = nnabla_pb2.NNablaProtoBuf()
    rest.CopyFrom(definition)
    rest.ClearField("network")
    _list_state(rest, rewritten, mixtures)
    parts = [text_format.MessageToString(rest)]
    by_network: Dict[str, List[FileLayer]] = {}
    for layer in rewritten:
        for name in dict.fromkeys(use.network for use in layer.uses):
            by_network.setdefault(name, []).append(layer)
    for network in definition.network:
        own = by_network.get(network.name, [])
        # Before the network's own functions, so that these find them computed.
        parts += ["network {\n", *[templates.text(layer, mixtures[layer.name]) for layer in own]]
        parts += [text_format.MessageToString(_redirected(network, own), indent=2), "}\n"]
    return "".join(parts).encode()


def _redirected(network: Any, layers: Sequence[FileLayer]) -> Any:
    """``network`` with its layers' functions taking the mixed weights."""
    mixed = {layer.weight: mixed_name(layer.weight) for layer in layers}
    if not mixed:
        return network
    copy = nnabla_pb2.Network()
    copy.CopyFrom(network)
    for function in copy.function:
        if len(function.input) > WEIGHT_INPUT and function.input[WEIGHT_INPUT] in mixed:
            function.input[WEIGHT_INPUT] = mixed[function.input[WEIGHT_INPUT]]
    return copy


def _list_state(rest: Any, layers: Sequence[FileLayer], mixtures: Mapping[str, Mixture]) -> None:
    """Name the state in the sections that list the parameters of a network."""
    for section in (*rest.executor, *rest.optimizer):
        if not section.parameter_variable:
            continue
        for layer in layers:
            if all(use.network != section.network_name for use in layer.uses):
                continue
            for name, entry in mixtures[layer.name].state_layout(layer.shape).items():
                listed = section.parameter_variable.add()
                listed.variable_name = f"{state_path(layer.weight)}/{name}"
                listed.learning_rate_multiplier = float(entry.learned)


class _Templates:
    def __init__(self) -> None:
        self._made: Dict[Tuple[Any, ...], str] = {}

    def text(self, layer: FileLayer, mixture: Mixture) -> str:
        key = (layer.shape, mixture)
        if key not in self._made:
            self._made[key] = _template(layer.shape, mixture)
        scope = text_encoding.CEscape(state_path(layer.weight).encode(), False)
        weight = text_encoding.CEscape(layer.weight.encode(), False)
        return self._made[key].replace(_SCOPE, scope).replace(_WEIGHT, weight)


def _template(shape: Tuple[int, ...], mixture: Mixture) -> str:
    """Variables and functions of one mixture, as text with placeholders for the names."""
    layout = mixture.state_layout(shape)
    state = {
        path: nn.Variable(entry.initial.shape, need_grad=entry.learned)
        for path, entry in layout.items()
    }
    w = nn.Variable(shape, need_grad=True)
    with nn.auto_forward(False):
        coefficients = mixture.coefficients(state)
        states = mixture.quantizer_states(state)
        q = mix(w, mixture.quantizers, coefficients, states=states)
    graph = nn.graph_def.create_graph_from_variable(
        "mixture", [q], names={"w": w, "q": q, **state}, parameter_scope=None
    )
    network = graph.as_proto(variable_batch_size=False).network[0]
    names = {"w": _WEIGHT, "q": f"{_SCOPE}/W"}
    names.update({name: f"{_SCOPE}/{name}" for name in state})
    for i, function in enumerate(network.function):
        function.name = f"{_SCOPE}/{function.type}_{i}"
        for j, name in enumerate(function.output):
            names.setdefault(name, f"{_SCOPE}/{i}.{j}")
    part = nnabla_pb2.Network()
    for v in network.variable:
        if v.name == "w":
            continue
        added = part.variable.add()
        added.CopyFrom(v)
        added.name = names[v.name]
        added.type = "Parameter" if v.name in state else "Buffer"
    for function in network.function:
        added = part.function.add()
        added.CopyFrom(function)
        added.input[:] = [names[name] for name in function.input]
        added.output[:] = [names[name] for name in function.output]
    return str(text_format.MessageToString(part, indent=2))


def remove_mixtures(definition: Any, weights: Sequence[str]) -> None:
    """Undo in place what :func:`definition_text` did for the layers with these weights.

    Raises:
        ValueError: Something else uses an inner variable of a mixture.
    """
    scopes = {state_path(weight) for weight in weights}
    original = {mixed_name(weight): weight for weight in weights}

    def outer(name: str) -> bool:
        return name.rpartition("/")[0] not in scopes

    for network in definition.network:
        keep_only(network.function, lambda function: outer(function.name))
        keep_only(network.variable, lambda variable: outer(variable.name))
        for function in network.function:
            function.input[:] = [original.get(name, name) for name in function.input]
            wrong = [name for name in (*function.input, *function.output) if not outer(name)]
            if wrong:
                raise ValueError(
                    f"network {network.name}: function {function.name} uses {wrong[0]}, which "
                    f"belongs to a layer's mixture; was the file edited after it was converted?"
                )
    for section in (*definition.executor, *definition.optimizer):
        keep_only(section.parameter_variable, lambda listed: outer(listed.variable_name))


def initial_state(
    layer: FileLayer,
    mixture: Mixture,
    activations: Optional[Mixture] = None,
    weights: Optional[np.ndarray] = None,
) -> Dict[str, Parameter]:
    """The first values of a layer's state, by the names of the parameters.

    With its ``weights``, also what quantizers fit to these.
    """
    scope = state_path(layer.weight)
    state = _initial(scope, TensorConfig(layer.function, mixture), layer.shape)
    for k, q in enumerate(mixture.quantizers):
        if weights is None or not fitted_names(q):
            continue
        own = {name: state[f"{scope}/{k}/{name}"].array for name in q.state(1)}
        for name, value in fitted_values(q, weights, own).items():
            path = f"{scope}/{k}/{name}"
            state[path] = state[path]._replace(array=value)
    if activations is not None:
        config = TensorConfig(layer.function, activations, ACTIVATION)
        state.update(_initial(f"{scope}/{ACTIVATION}", config, layer.shape))
    return state


def _initial(scope: str, config: TensorConfig, shape: Tuple[int, ...]) -> Dict[str, Parameter]:
    name, content = config.entry()
    state = {f"{scope}/{name}": Parameter(content, False)}
    for path, entry in config.layout(shape).items():
        state[f"{scope}/{path}"] = Parameter(entry.initial, entry.learned)
    return state
