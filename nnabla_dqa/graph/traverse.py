"""A live graph as deploying sees it: its functions, its leaves, the weights its layers use."""

from __future__ import annotations

import contextlib
from typing import Any, Dict, Iterator, List, Mapping, NamedTuple, Set, Tuple

import nnabla as nn
import nnabla.function
import numpy as np

from nnabla_dqa.backends import portable
from nnabla_dqa.backends.nnabla_hooks import writers
from nnabla_dqa.layers.tensors import QuantizedTensor
from nnabla_dqa.mixing.mixture import CHOSEN, HARD
from nnabla_dqa.quantization.graph_ops import Variable


class LiveGraph(NamedTuple):
    """The functions above some outputs, in order, and the arrays of their leaf variables."""

    functions: List[Any]
    leaves: Dict[Any, Any]

    @classmethod
    def of(cls, outputs: Mapping[str, Variable]) -> LiveGraph:
        """The graph above ``outputs``.

        Raises:
            ValueError: oneDNN computes a part of it (:func:`nnabla_dqa.accelerate`), which hides
                the functions in it.
        """
        functions: List[Any] = []
        leaves: Dict[Any, Any] = {}

        def visit(function: Any) -> None:
            if function in seen:
                return
            if function.info.type_name in writers:
                raise ValueError(
                    "layers of this graph are on oneDNN (dqa.accelerate), which hides them; build "
                    "the graph once more for this, or call accelerate afterwards"
                )
            seen.add(function)
            functions.append(function)
            for v in function.inputs:
                if v.parent is None:
                    leaves[v.data] = v

        seen: Set[Any] = set()
        for output in outputs.values():
            output.visit(visit)
        return cls(functions, leaves)

    def weights_of(self, layer: QuantizedTensor) -> List[Variable]:
        """The variables by which functions get ``layer``'s weights; one for each use of them."""
        # An apply_w such as weight normalization has parameters of its own in the layer's scope.
        with nn.parameter_scope("", layer.scope):
            own = {v.data for v in nn.get_parameters(grad_only=False).values()}
        computed: Set[Any] = set()
        found: Dict[Any, None] = {}
        for function in self.functions:
            if function.info.type_name == portable.FUSED:
                continue
            mine = [v.data in own if v.parent is None else v in computed for v in function.inputs]
            if mine and all(mine):
                computed.update(function.outputs)
            else:
                found.update({v: None for v, is_mine in zip(function.inputs, mine) if is_mine})
        return [v for v in found if v.shape == layer.weight.shape]

    @contextlib.contextmanager
    def hardened(self, layers: List[QuantizedTensor], chosen: Dict[str, int]) -> Iterator[None]:
        """Let the ``hard`` leaves see one quantizer alone; the parameters stay as they are."""
        swapped = []
        try:
            for layer in layers:
                mixture = layer.mixture
                one = np.ones(1, np.float32)
                wanted = {HARD: mixture.alone(chosen[layer.name])} if mixture.is_mixed else {}
                wanted.update(dict.fromkeys(mixture.switches, one))
                found = dict(layer.state)
                if layer.chosen is not None:
                    found[CHOSEN], wanted[CHOSEN] = layer.chosen, mixture.alone(chosen[layer.name])
                for path, array in wanted.items():
                    leaf = self.leaves.get(found[path].data)
                    if leaf is not None:
                        swapped.append((leaf, leaf.data))
                        leaf.data = nn.NdArray.from_numpy_array(array)
            yield
        finally:
            for leaf, array in swapped:
                leaf.data = array


def again(function: Any, inputs: List[Variable], verb: str) -> Tuple[Variable, ...]:
    """The same function on other inputs.

    Raises:
        ValueError: It is none of NNabla's own; the message begins with ``verb``.
    """
    if function.info.type_name == portable.FUSED:
        from nnabla_dqa.backends.fused_activations import rebuilt

        return rebuilt(function, inputs)
    kind = getattr(nnabla.function, function.info.type_name, None)
    if kind is None:
        raise ValueError(
            f"{verb}: function {function.info.type_name} is not one of NNabla's own and cannot be "
            f"built anew; {verb} the parts before and after it"
        )
    made = kind(function.context, **function.info.args)
    results = made(*inputs, n_outputs=len(function.outputs), auto_forward=False)
    results = results if isinstance(results, tuple) else (results,)
    for old, new in zip(function.outputs, results):
        if not old.need_grad and new.need_grad:
            new.need_grad = False  # the user has cut the gradient here
    return tuple(results)
