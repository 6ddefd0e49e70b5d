"""Functions in Python that hand the addresses of their arrays to compiled code."""

from __future__ import annotations

from typing import Any, Dict, List, Sequence, Tuple

import nnabla as nn
import numpy as np
from nnabla.function import PythonFunction

_FLOAT32 = np.dtype(np.float32)


class AddressedFunction(PythonFunction):  # type: ignore[misc]
    """What was made for arrays of certain shapes, and would touch foreign memory for others.

    Args:
        context: Of the device and with an array class, in float32.
        shapes: Of the inputs.
        what: What was built, for messages: ``"the mixture was built"``.
        again: What has to be built anew for other shapes: ``"the layer"``.
    """

    ctx = None
    """NNabla enters this context for each call and question; none is needed, see
    :mod:`nnabla_dqa.backends.nnabla_hooks`."""

    def __init__(
        self, context: nn.Context, shapes: Sequence[Tuple[int, ...]], what: str, again: str
    ) -> None:
        super().__init__(context)
        self._context = context
        # NNabla copies all of a context for each address, of which these two count.
        self._memory = nn.Context([], context.array_class, context.device_id)
        self._shapes = list(shapes)
        self._words = what, again
        self._misfit = ""
        self._converted: Dict[int, nn.NdArray] = {}

    def _note_shapes(self, inputs: List[Any]) -> None:
        """For ``setup_impl``: keep in mind whether the inputs have other shapes.

        NNabla comes there again before a call with other shapes, and makes the call also if
        that raises; so it is the call that does.
        """
        what, again = self._words
        self._misfit = ""
        for v, built in zip(inputs, self._shapes):
            if v.shape != built:
                self._misfit = (
                    f"{what} for an array of shape {built}, which has {v.shape} now; build "
                    f"{again} again"
                )

    def _check(self) -> None:
        """Raise ValueError if the inputs have other shapes."""
        if self._misfit:
            raise ValueError(self._misfit)

    def _read(self, inputs: List[Any], i: int) -> int:
        """The address of an input, in float32 on the device; what has another type keeps it."""
        return self._read_array(inputs[i].data, i)

    def _read_array(self, array: nn.NdArray, i: int) -> int:
        """Likewise; ``i`` is a number of the array's own."""
        try:
            if array.dtype != _FLOAT32:
                array = self._float32(i, array)
        except RuntimeError:
            # It was filled, or nothing was written yet: it becomes float32 here.
            pass
        return self._address(array)

    def _float32(self, i: int, array: nn.NdArray) -> nn.NdArray:
        """A copy of what is kept in another type, which then stays its own; made on the device."""
        copy = self._converted.setdefault(i, nn.NdArray(array.shape))
        with nn.context_scope(self._context):
            copy.copy_from(array)
        return copy

    def _address(self, array: nn.NdArray, write_only: bool = False) -> int:
        address: int = array.data_ptr(_FLOAT32, self._memory, write_only)
        return address

    def _target(self, grad: nn.NdArray, accum: bool) -> Tuple[int, bool]:
        """Where a gradient goes, and whether it is added to what is there."""
        # A gradient that was zeroed is only marked so: there is nothing to add to.
        add = accum and not grad.zeroing
        return self._address(grad, not add), add
