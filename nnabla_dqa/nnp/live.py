"""The networks of an NNP as live graphs over one set of parameters."""

from __future__ import annotations

import numbers
from collections import OrderedDict
from typing import Any, Dict, List, Mapping, NamedTuple, Optional, Set, Tuple

import nnabla as nn
from nnabla.utils import nnabla_pb2

from nnabla_dqa.graph.traverse import LiveGraph, again
from nnabla_dqa.layers.build import mix_activations, mix_weights
from nnabla_dqa.layers.functions import WEIGHT_INPUT
from nnabla_dqa.layers.tensors import QuantizedTensor, find_quantized
from nnabla_dqa.nnp.expand import mixed_name
from nnabla_dqa.nnp.file import NetworkFile
from nnabla_dqa.nnp.layers import FileLayer
from nnabla_dqa.nnp_format.members import NNPError
from nnabla_dqa.nnp_format.parameters import Parameter
from nnabla_dqa.quantization.graph_ops import Variable

NORMALIZATION = {
    "BatchNormalization": "batch_normalization_param",
    "FusedBatchNormalization": "fused_batch_normalization_param",
    "SyncBatchNormalization": "sync_batch_normalization_param",
}
"""Functions that normalize by batch or running statistics, and where they say by which."""


class Normalization(NamedTuple):
    """The parameters of a function that normalizes; scale and shift may be missing."""

    shift: Optional[str]
    scale: Optional[str]
    mean: str
    variance: str


def normalization_of(function: Any) -> Optional[Normalization]:
    """The parameters of ``function``; None if it does not normalize by statistics.

    Raises:
        ValueError: It lacks inputs.
    """
    if function.type not in NORMALIZATION:
        return None
    arguments = getattr(function, NORMALIZATION[function.type])
    names = list(function.input[1:])
    no_shift = getattr(arguments, "no_bias", False)
    no_scale = getattr(arguments, "no_scale", False)
    wanted = 4 - no_shift - no_scale
    if len(names) < wanted:
        raise ValueError(
            f"function {function.name} ({function.type}) has {len(function.input)} inputs, "
            f"{wanted + 1} are needed: the array, "
            f"{'' if no_shift else 'shift, '}{'' if no_scale else 'scale, '}mean and variance"
        )
    shift = None if no_shift else names.pop(0)
    scale = None if no_scale else names.pop(0)
    return Normalization(shift, scale, names[0], names[1])


class Built(NamedTuple):
    """A network as a live graph.

    ``inputs`` and ``outputs`` are those of the network, ``variables`` all its
    variables, by name.
    """

    inputs: Dict[str, Variable]
    outputs: Dict[str, Variable]
    variables: Dict[str, Variable]


class Program:
    """Builds the networks of a file; all graphs share this program's parameters.

    Args:
        file: Any NNP. In a converted one the weights go through the layers'
            mixtures, with the same state arrays as layers of model code.
        quantized: False builds a converted file's networks with float weights.

    Raises:
        NNPError: The class of a layer's quantizer is not known.
    """

    def __init__(self, file: NetworkFile, quantized: bool = True) -> None:
        if quantized:
            file.check_quantizers()
        self.file = file
        self.quantized = quantized
        self.scope: Any = OrderedDict()
        try:
            self._statistics = _statistics(file.archive.definition)
        except ValueError as error:
            raise NNPError(f"{file.archive.path}: {error}") from None
        with nn.parameter_scope("", self.scope):
            for name, (array, need_grad) in file.archive.parameters.items():
                trained = need_grad and name not in self._statistics
                variable = nn.Variable.from_numpy_array(array, need_grad=trained)
                nn.parameter.set_parameter(name, variable)

    @property
    def layers(self) -> List[QuantizedTensor]:
        """The DQA layers that have been built."""
        return find_quantized(self.scope) if self.quantized else []

    def variable(self, name: str) -> Variable:
        """The parameter of this name."""
        return self.parameters()[name]

    def parameters(self) -> Dict[str, Variable]:
        """All parameters by name."""
        with nn.parameter_scope("", self.scope):
            parameters: Dict[str, Variable] = nn.get_parameters(grad_only=False)
        return parameters

    def arrays(self) -> Dict[str, Parameter]:
        """The present values of all parameters, copied, in the order of the file."""
        return {name: Parameter(v.d.copy(), v.need_grad) for name, v in self.parameters().items()}

    def build(
        self,
        network: str,
        batch_size: int,
        inputs: Optional[Mapping[str, Variable]] = None,
        batch_stat: Optional[bool] = None,
        dropout: bool = True,
    ) -> Built:
        """A network as a live graph.

        Built under :func:`nnabla_dqa.hard` it uses one quantizer a layer.

        Args:
            network: Its name.
            batch_size: What -1 in the network's shapes stands for.
            inputs: Variables to use for inputs of these names; new ones are
                made for the others.
            batch_stat: Make all batch normalization use batch (True) or
                running statistics (False); None: as the file says.
            dropout: False lets everything through Dropout.

        Raises:
            NNPError: There is no such network.
            ValueError: NNabla cannot build it; the message names the network.
        """
        if not isinstance(batch_size, numbers.Integral) or batch_size < 1:
            # NNabla divides by the size of arrays, and ends the process.
            raise ValueError(f"batch_size must be a whole number from 1 on; got {batch_size!r}")
        definition = nnabla_pb2.NNablaProtoBuf()
        proto = definition.network.add()
        proto.CopyFrom(self.file.network(network))
        layers = self._lead_weights_through_inputs(proto) if self.quantized else {}
        _set_mode(proto, batch_stat, dropout)
        needs = {name: v.need_grad for name, v in self.parameters().items()}
        graph = nn.graph_def.ProtoGraph.from_proto(
            definition, batch_size=batch_size, param_scope=self.scope
        )
        graph.expand_loop_control()
        net = graph.networks[network]
        for name, parameter in net.parameters.items():
            parameter.need_grad = needs.get(name, True)
        given = dict(inputs or {})
        for name in net.inputs:
            if name in layers:
                given[name] = self._mixed(layers[name])
            elif name not in given:
                shape = [d if d >= 0 else batch_size for d in net.variables[name].shape]
                given[name] = nn.Variable(shape)
        with nn.auto_forward(False):
            try:
                net(*[given[name] for name in net.inputs], batch_size=batch_size)
            except RuntimeError as error:
                raise ValueError(
                    f"{self.file.archive.path}: network {network} cannot be built for a batch of "
                    f"{batch_size}: {_last_line(error)}"
                ) from None
        for name, v in self.parameters().items():
            v.need_grad = needs.get(name, v.need_grad)
        unknown = [name for name, v in net.variables.items() if v.variable_instance is None]
        if unknown:
            raise ValueError(
                f"{self.file.archive.path}: network {network} cannot be built: NNabla does not "
                f"compute {unknown[0]}; has each function a name?"
            )
        variables = {name: v.variable_instance for name, v in net.variables.items()}
        owners = {given[name]: layer for name, layer in layers.items()}
        made = self._quantize_inputs(list(variables.values()), owners)
        variables = {name: made.get(v, v) for name, v in variables.items()}
        return Built(
            {name: given[name] for name in net.inputs if name not in layers},
            {name: variables[name] for name in net.outputs},
            variables,
        )

    def _lead_weights_through_inputs(self, proto: Any) -> Dict[str, FileLayer]:
        """Make the weights of ``proto``'s layers inputs; their layers by the inputs' names."""
        layers = {layer.weight: layer for layer in self.file.rewritten}
        used: Dict[str, FileLayer] = {}
        for function in proto.function:
            weight = function.input[WEIGHT_INPUT] if len(function.input) > WEIGHT_INPUT else ""
            if weight not in layers:
                continue
            name = mixed_name(weight)
            function.input[WEIGHT_INPUT] = name
            if name not in used:
                variable = proto.variable.add(name=name, type="Buffer")
                variable.shape.dim.extend(layers[weight].shape)
            used[name] = layers[weight]
        return used

    def _mixed(self, layer: FileLayer) -> Variable:
        path, _, key = layer.weight.rpartition("/")
        with nn.parameter_scope("", self.scope):
            w = nn.get_parameters(grad_only=False)[layer.weight]
            # NNabla splits the path itself; an empty one means this very scope.
            with nn.parameter_scope(path, None if path else self.scope):
                mixture = self.file.mixtures[layer.name]
                return mix_weights(w, w, layer.function, mixture, key=key, name=layer.name)

    def _quantize_inputs(
        self, variables: List[Variable], owners: Mapping[Variable, FileLayer]
    ) -> Dict[Variable, Variable]:
        """What enters layers quantized where it is to be; new variables by the old ones."""
        found = {w: self.file.input_owner(layer) for w, layer in owners.items()}
        wanted = {w: owner for w, owner in found.items() if owner is not None}
        quantized: Dict[Tuple[str, Variable], Variable] = {}
        made: Dict[Variable, Variable] = {}
        if not wanted:
            return made
        ends = [v for v in variables if not v.function_references]
        for function in LiveGraph.of({str(i): v for i, v in enumerate(ends)}).functions:
            inputs = [made.get(v, v) for v in function.inputs]
            w = function.inputs[WEIGHT_INPUT] if len(inputs) > WEIGHT_INPUT else None
            if w in wanted:
                key = wanted[w].name, function.inputs[0]
                if key not in quantized:
                    quantized[key] = self._quantized_input(wanted[w], inputs[0])
                inputs[0] = quantized[key]
            elif not any(v in made for v in function.inputs):
                continue
            made.update(zip(function.outputs, again(function, inputs, "build")))
        return made

    def _quantized_input(self, layer: FileLayer, x: Variable) -> Variable:
        mixture = self.file.assigned[layer.name].activations
        assert mixture is not None
        path, _, key = layer.weight.rpartition("/")
        around = nn.parameter_scope("", self.scope)
        with around, nn.parameter_scope(path, None if path else self.scope), nn.auto_forward(False):
            return mix_activations(x, layer.function, mixture, key=key, name=layer.name)


def _set_mode(network: Any, batch_stat: Optional[bool], dropout: bool) -> None:
    for function in network.function:
        if batch_stat is not None and function.type in NORMALIZATION:
            getattr(function, NORMALIZATION[function.type]).batch_stat = batch_stat
        if function.type == "Dropout" and not dropout:
            function.dropout_param.p = 0


def _statistics(definition: Any) -> Set[str]:
    """The parameters that hold running statistics."""
    functions = [function for network in definition.network for function in network.function]
    found = [normalization_of(function) for function in functions]
    return {name for n in found if n is not None for name in (n.mean, n.variance)}


def _last_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
