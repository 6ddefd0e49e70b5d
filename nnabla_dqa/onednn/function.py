"""A part of a graph as one of NNabla's functions."""

from __future__ import annotations

import ctypes
import itertools
import weakref
from typing import Any, Dict, List, Optional, Sequence, Set, Tuple

import nnabla as nn

from nnabla_dqa.backends.addressed import AddressedFunction
from nnabla_dqa.backends.seen import note_finite
from nnabla_dqa.onednn.builder import Builder
from nnabla_dqa.onednn.library import OneDnnError
from nnabla_dqa.onednn.lowering import RULES, Fused, addition, normalization
from nnabla_dqa.onednn.mixtures import is_small, reserve_tables
from nnabla_dqa.onednn.parts import Part
from nnabla_dqa.onednn.program import Kind, Plan, Program

NAME = "OneDnnPart"
"""NNabla's name of the type of function."""


_numbers = itertools.count()
_living: weakref.WeakValueDictionary[int, PartFunction] = weakref.WeakValueDictionary()


def part_function(function: Any) -> Optional[PartFunction]:
    """What computes a function of a graph, None if it is no part on oneDNN."""
    info = function.info
    return _living[info.args["part"]] if info.type_name == NAME else None


class PartFunction(AddressedFunction):
    """Computes a part.

    Args:
        part: The functions that it stands for.
        context: Theirs, with an array class.
        trains: Whether there will be a backward pass.

    Attributes:
        part: As given.
        inputs: The variables that it is called with.
        sources: For each output, which function of the part it comes from and which of its
            outputs it is; ``accelerate`` gives that one another variable.

    Raises:
        OneDnnError: oneDNN does not compute it.
    """

    def __init__(self, part: Part, context: nn.Context, trains: bool = True) -> None:
        builder = build(part, trains)
        self.part, self.inputs = part, builder.inputs
        shapes = [v.shape for v in self.inputs]
        super().__init__(context, shapes, "the layers on oneDNN were built", "the graph")
        places = {v: (f, i) for f in part.functions for i, v in enumerate(f.outputs)}
        self.sources: List[Tuple[Any, int]] = [places[v] for v in part.outputs]
        self._out_shapes = [v.shape for v in builder.outputs]
        self._leaves = builder.leaves
        self._first_output = len(self.inputs)
        self._first_leaf = self._first_output + len(self._out_shapes)
        self._leaf_shapes = [v.shape for v in self._leaves]
        count = self._first_leaf + len(self._leaves)
        plan = builder.finish()
        wanted = {spec.external: bool(spec.wanted) for spec in plan.tensors if spec.external >= 0}
        self._wanted = [wanted[i] for i in range(count)]
        self._checked = self._looked_at(plan)
        self._program = Program(plan, trains=any(self._wanted))
        self._arrays = (ctypes.c_void_p * count)()
        self._grads = (ctypes.c_void_p * count)()
        self._add = (ctypes.c_uint8 * count)()
        self._in_place = _changed_in_place(part)
        self._is_fresh = False
        # NNabla copies the arguments, so they name the part alone.
        number = next(_numbers)
        self.args: Dict[str, Any] = {"part": number}
        _living[number] = self

    def _looked_at(self, plan: Plan) -> List[Any]:
        """The parameters in which forward looks for NaN: weights and alpha of mixtures."""
        places: Dict[int, Any] = dict(enumerate(self.inputs))
        places.update(enumerate(self._leaves, self._first_leaf))
        read = (k for f in plan.layers if f.kind == Kind.MIXTURE for k in f.inputs[:2] if k >= 0)
        found = {spec: places.get(spec) for spec in (plan.tensors[k].external for k in read)}
        return [v for v in found.values() if v is not None and v.parent is None]

    @property
    def name(self) -> str:
        """The same for all parts."""
        return NAME

    @property
    def bytes(self) -> int:
        """Memory of what lies between its layers."""
        return self._program.bytes

    def min_outputs(self) -> int:
        return len(self._out_shapes)

    def setup_impl(self, inputs: List[Any], outputs: List[Any]) -> None:
        self._note_shapes(inputs)
        for v, shape in zip(outputs, self._out_shapes):
            v.reset_shape(shape, True)

    def forward_impl(self, inputs: List[Any], outputs: List[Any]) -> None:
        self._check()
        arrays = self._arrays
        for i in range(len(inputs)):
            arrays[i] = self._read(inputs, i)
        for i, v in enumerate(outputs, self._first_output):
            arrays[i] = self._address(v.data, True)
        self._read_leaves()
        is_finite = self._program.forward(arrays)
        note_finite(self, self._checked if is_finite else ())
        self._is_fresh = True

    def _read_leaves(self) -> None:
        arrays = self._arrays
        for i, (v, shape) in enumerate(zip(self._leaves, self._leaf_shapes), self._first_leaf):
            if v.shape != shape:
                raise ValueError(
                    f"the layers on oneDNN were built for a parameter of shape {shape}, which has "
                    f"{v.shape} now; build the graph again"
                )
            # Running statistics are written too, and so have to be there in float32.
            data = v.data
            arrays[i] = self._read_array(data, i) if v.need_grad else self._address(data)

    def backward_impl(
        self, inputs: List[Any], outputs: List[Any], propagate_down: List[bool], accum: List[bool]
    ) -> None:
        self._check()
        arrays, grads = self._arrays, self._grads
        for i, v in enumerate(inputs):
            arrays[i] = self._read(inputs, i)
            if not propagate_down[i]:
                grads[i] = None
                continue
            if not self._wanted[i]:
                raise OneDnnError(
                    f"input {i} of layers on oneDNN, of shape {v.shape}, needed no gradient when "
                    f"they were built; build the graph again"
                )
            grads[i], self._add[i] = self._target(v.grad, accum[i])
        for i, v in enumerate(outputs, self._first_output):
            grads[i], self._add[i] = self._address(v.grad), True
        for i, v in enumerate(self._leaves, self._first_leaf):
            if self._wanted[i] and v.need_grad:
                arrays[i] = self._read_array(v.data, i)
                # NNabla adds to the gradients of all leaves that are not marked as zero.
                grads[i], self._add[i] = self._target(v.grad, True)
            else:
                grads[i] = None
        if not self._is_fresh:
            # A second backward: what the first one used up is computed once more.
            self._read_leaves()
            for i, v in enumerate(outputs, self._first_output):
                arrays[i] = self._address(v.data)
            self._program.forward(arrays, moves_statistics=False)
        self._is_fresh = False
        self._program.backward(arrays, grads, self._add)

    def grad_depends_output_data(self, i: int, o: int) -> bool:
        # They do not. But NNabla asks for each input and output until the answer is yes.
        return not self._in_place

    def grad_depends_input_data(self, i: int, j: int) -> bool:
        return True


def build(part: Part, trains: bool) -> Builder:
    """The layers of a part."""
    builder = Builder(trains)
    reserve_tables(builder, part.functions)
    chains = _chains(part)
    inner = {f for chain in chains.values() for f in chain[:-1]}
    # The small mixtures first, which are computed side by side.
    for f in sorted(part.functions, key=lambda f: not is_small(f)):
        if f in inner:
            continue
        chain = chains.get(f, [f])
        if chain[0].info.type_name == "BatchNormalization":
            normalization(builder, chain[0], _fused(chain))
        elif chain[0].info.type_name == "Add2":
            addition(builder, chain[0], _fused(chain))
        else:
            RULES[f.info.type_name].lower(builder, f)
    for v in part.outputs:
        builder.hand_out(v)
    return builder


def _fused(chain: Sequence[Any]) -> Fused:
    relu = chain[-1].info.type_name == "ReLU"
    residual = None
    if chain[0].info.type_name == "BatchNormalization":
        for f in chain[1:]:
            if f.info.type_name == "Add2":
                residual = next(v for v in f.inputs if v != chain[0].outputs[0])
    return Fused(chain[-1].outputs[0], relu, residual)


def _chains(part: Part) -> Dict[Any, List[Any]]:
    """Functions that are computed in one pass over the array, by the last of them.

    Batch normalization, an addition, a ReLU, where nothing else uses what is between them.
    """
    users: Dict[Any, List[Any]] = {}
    for f in part.functions:
        for v in f.inputs:
            users.setdefault(v, []).append(f)
    outputs = set(part.outputs)
    shared = _shared_statistics(part)
    taken = set()
    chains: Dict[Any, List[Any]] = {}
    followers: Dict[str, Tuple[str, ...]] = {
        "BatchNormalization": ("Add2", "ReLU"),
        "Add2": ("ReLU",),
    }
    for f in part.functions:
        if f in taken or f.info.type_name not in followers or f in shared:
            continue
        chain = [f]
        while True:
            v = chain[-1].outputs[0]
            after = users.get(v, [])
            allowed = followers.get(chain[-1].info.type_name, ())
            if v in outputs or len(after) != 1 or after[0].info.type_name not in allowed:
                break
            if after[0] in taken or len(set(after[0].inputs)) != len(after[0].inputs):
                break
            # What it is added to has a gradient of its own; and a gradient may be cut here.
            cut = not v.need_grad and any(u.need_grad for u in chain[-1].inputs)
            if cut or chain[0].inputs[0] in after[0].inputs:
                break
            chain.append(after[0])
        if len(chain) > 1:
            taken.update(chain)
            chains[chain[-1]] = chain
    return chains


def _shared_statistics(part: Part) -> Set[Any]:
    """Normalizations that move the same statistics, which has to happen in NNabla's order."""
    users: Dict[Any, List[Any]] = {}
    for f in part.functions:
        if f.info.type_name == "BatchNormalization":
            for array in {v.data for v in f.inputs[3:]}:
                users.setdefault(array, []).append(f)
    return {f for functions in users.values() if len(functions) > 1 for f in functions}


def _changed_in_place(part: Part) -> bool:
    """Whether a function outside writes over an output."""
    return any(
        f.inplace_data(i) == 2
        for v in part.outputs
        for f in v.function_references
        for i, u in enumerate(f.inputs)
        if u == v
    )
