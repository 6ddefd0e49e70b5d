"""Values of a graph as a plan's tensors: which memory they lie in, and in which order."""

from __future__ import annotations

from typing import Any, Dict, List, NamedTuple, Optional, Tuple

import nnabla as nn

from nnabla_dqa.onednn.program import Dims, Kind, Plan

_MANY = 1 << 20


class Turned(NamedTuple):
    """A variable's numbers with its channels last, where NNabla has them first."""

    tensor: int
    dims: Dims


def _key(v: nn.Variable) -> Any:
    """What a value is known by: leaves that share their array and gradient are one."""
    if v.parent is not None:
        return v
    return (v.data, v.grad) if v.need_grad else (v.data,)


class Builder:
    """Collects the layers of one part of a graph.

    A value is *flat*, in NNabla's order, or *turned*. Layers ask for what they need; what is
    turned for one of them is kept for the others.

    Args:
        trains: Whether there will be a backward pass.

    Attributes:
        plan: What is built.
        inputs: The variables from outside, in the order of the function's inputs.
        outputs: Likewise those that are needed outside.
        leaves: Parameters that are read, or written, beside the inputs. NNabla's engine takes
            a time for each function that grows with the square of the number of its inputs.
    """

    def __init__(self, trains: bool) -> None:
        self._trains = trains
        self.plan = Plan()
        self.inputs: List[nn.Variable] = []
        self.outputs: List[nn.Variable] = []
        self.leaves: List[nn.Variable] = []
        self._flat: Dict[Any, int] = {}
        self._turned: Dict[Any, Turned] = {}
        self._views: Dict[Tuple[int, Dims], int] = {}

    def flat(self, v: nn.Variable, dims: Optional[Dims] = None) -> int:
        """The tensor of a value in NNabla's order, seen with these dimensions."""
        key = _key(v)
        if key not in self._flat:
            if key in self._turned:
                self._flat[key] = self._turn_back(self._turned[key])
            else:
                self._flat[key] = self._input(v, dims or Dims(1, 1, v.size))
        return self._view(self._flat[key], dims)

    def turned(self, v: nn.Variable, dims: Dims) -> int:
        """The tensor of a value with its channels last; ``dims`` says which they are."""
        if dims.positions == 1 or dims.channels == 1:
            return self.flat(v, dims)
        known = self._turned.get(_key(v))
        if known is None or known.dims != dims:
            source = self.flat(v, dims)
            target = self.plan.tensor(dims, self.plan.wanted(source))
            self.plan.layer(Kind.CHANNELS_LAST, [source], [target])
            known = self._turned[_key(v)] = Turned(target, dims)
        return known.tensor

    def is_turned(self, v: nn.Variable) -> Optional[Dims]:
        """How a value lies that is turned only; None if it is there in NNabla's order."""
        return (
            None
            if _key(v) in self._flat or _key(v) not in self._turned
            else self._turned[_key(v)].dims
        )

    def new_flat(self, v: nn.Variable, dims: Optional[Dims] = None) -> int:
        """A tensor for a value that a layer computes in NNabla's order."""
        tensor = self._flat[_key(v)] = self.plan.tensor(dims or Dims(1, 1, v.size), self._wanted(v))
        return tensor

    def new_turned(self, v: nn.Variable, dims: Dims) -> int:
        """A tensor for a value that a layer computes with its channels last."""
        if dims.positions == 1 or dims.channels == 1:
            return self.new_flat(v, dims)
        tensor = self.plan.tensor(dims, self._wanted(v))
        self._turned[_key(v)] = Turned(tensor, dims)
        return tensor

    def alike(self, v: nn.Variable, result: nn.Variable) -> Tuple[int, int]:
        """The tensors of a value, as it lies, and of another one that shall lie as it does."""
        dims = self.is_turned(v)
        if dims is not None:
            return self.turned(v, dims), self.new_turned(result, dims)
        source = self.flat(v)
        return source, self.new_flat(result, self.plan.dims(source))

    def flat_or_new(self, v: nn.Variable) -> int:
        """A tensor for a value that has a place already if :meth:`part_of` gave it one."""
        return self.flat(v) if self.has(v) else self.new_flat(v)

    def part_of(self, v: nn.Variable, whole: nn.Variable, offset: int) -> None:
        """Let ``v`` lie within ``whole``, which then needs no layer that copies it there."""
        if _key(whole) not in self._flat:
            self.new_flat(whole)
        self._flat[_key(v)] = self.plan.tensor(
            Dims(1, 1, v.size), self._wanted(v), self._flat[_key(whole)], offset
        )

    def has(self, v: nn.Variable) -> bool:
        """Whether a value is there already."""
        return _key(v) in self._flat or _key(v) in self._turned

    def state(self, v: nn.Variable) -> int:
        """The tensor of an array that has no gradient: statistics, a temperature."""
        if v.parent is not None or v.need_grad or _key(v) in self._flat:
            return self.flat(v)
        tensor = self._flat[_key(v)] = self._leaf(v, Dims(1, 1, v.size))
        return tensor

    def hand_out(self, v: nn.Variable) -> None:
        """Make a value an output of the function."""
        place = -2 - len(self.outputs)  # after all inputs, whose number is not known yet
        self.outputs.append(v)
        turned = self.is_turned(v)
        if turned is not None:
            target = self.plan.tensor(turned, self._wanted(v), external=place)
            self.plan.layer(Kind.CHANNELS_FIRST, [self._turned[_key(v)].tensor], [target])
            return
        # What the backward pass of a layer reads must not be the array that is handed out.
        source = self._flat[_key(v)]
        dims = self.plan.dims(source)
        target = self.plan.tensor(dims, self._wanted(v), external=place)
        self.plan.layer(Kind.COPY, [source], [target])

    def finish(self) -> Plan:
        """The plan; nothing can be added afterwards."""
        before = len(self.inputs)
        for spec in self.plan.tensors:
            if spec.external < -2 - _MANY:
                spec.external = before + len(self.outputs) - 3 - _MANY - spec.external
            elif spec.external <= -2:
                spec.external = before - 2 - spec.external
        return self.plan

    def _wanted(self, v: nn.Variable) -> bool:
        return self._trains and bool(v.need_grad)

    def _leaf(self, v: nn.Variable, dims: Dims) -> int:
        self.leaves.append(v)
        place = -2 - _MANY - len(self.leaves)
        return self.plan.tensor(dims, self._wanted(v), external=place)

    def _input(self, v: nn.Variable, dims: Dims) -> int:
        # One that is learned is enough for NNabla to go back through the function.
        if v.parent is None and v.need_grad and any(u.need_grad for u in self.inputs):
            return self._leaf(v, dims)
        self.inputs.append(v)
        return self.plan.tensor(dims, self._wanted(v), external=len(self.inputs) - 1)

    def _turn_back(self, value: Turned) -> int:
        target = self.plan.tensor(value.dims, self.plan.wanted(value.tensor))
        self.plan.layer(Kind.CHANNELS_FIRST, [value.tensor], [target])
        return target

    def _view(self, tensor: int, dims: Optional[Dims]) -> int:
        if dims is None or self.plan.dims(tensor) == dims:
            return tensor
        key = (tensor, dims)
        if key not in self._views:
            spec = self.plan.tensors[tensor]
            whole, offset = (spec.whole, spec.offset) if spec.whole >= 0 else (tensor, 0)
            self._views[key] = self.plan.tensor(dims, bool(spec.wanted), whole, offset)
        return self._views[key]
