"""Small graph operations shared by the quantizers and the mixture.

Everything here is made of NNabla's standard functions, so that a graph which
uses it saves to an NNP that any NNabla loads. Arrays are ``(C, m)``: one row
per group of weights that share a range (``C = 1`` for per-tensor). Per-row
numbers are ``(C, 1)``.

NNabla's broadcasting binary functions are several times slower on the CPU than
a matrix product of the same size, hence the products of inner size 1.
They are exact: ``fma(x, s, 0) == x * s``.
"""

from __future__ import annotations

from typing import Any

import nnabla as nn
import nnabla.functions as F

Variable = Any
"""``nnabla.Variable``, or ``nnabla.ProtoVariable`` while a graph definition is recorded."""


def scale_rows(x: Variable, scale: Variable) -> Variable:
    """``x * scale`` for ``x`` of shape (C, m) and ``scale`` of shape (C, 1)."""
    rows, size = x.shape
    product = F.batch_matmul(F.reshape(x, (rows, size, 1)), F.reshape(scale, (rows, 1, 1)))
    return F.reshape(product, (rows, size))


def shift_rows(x: Variable, shift: Variable) -> Variable:
    """``x + shift`` for ``x`` of shape (C, m) and ``shift`` of shape (C, 1), rounded once."""
    rows, size = x.shape
    if rows > 1:
        return F.add2(x, shift)
    one = F.add_scalar(F.mul_scalar(shift, 0.0), 1.0)
    return F.reshape(F.affine(F.reshape(x, (size, 1)), one, F.reshape(shift, (1,))), (rows, size))


def difference(x: Variable, y: Variable) -> Variable:
    """``x - y`` of equal shapes. ``F.sub2`` is far slower on the CPU."""
    return F.add2(x, F.mul_scalar(y, -1.0))


def detach(x: Variable) -> Variable:
    """``x`` with a gradient of zero.

    ``need_grad = False`` cuts the gradient in a live graph but is not stored in
    an NNP. Clipping the gradient to [0, 0] is stored, so that a network that
    was saved and loaded trains with the same gradients.
    """
    zero = F.mul_scalar(x, 0.0)
    y = F.clip_grad_by_value(x, zero, zero)
    y.need_grad = False
    return y


def observed(array: Variable, values: Variable) -> Variable:
    """Exactly 0, of shape (1, 1), with ``values`` as the gradient to ``array``.

    Whatever gradient comes in, that to ``array`` (of the same shape) is what the forward pass
    has computed for ``values``. So the backward pass of a training leaves there what
    its forward pass saw, several of them add up, processes average it with
    their gradients, and a graph that is only evaluated leaves nothing.
    """
    given = F.clip_grad_by_value(array, values, values)
    return F.reshape(F.mul_scalar(F.sum(given, axis=(0, 1)), 0.0), (1, 1))


def lift(parameter: Variable, like: Variable | None) -> Variable:
    """``parameter`` as a node of the graph to which ``like`` belongs.

    While a graph definition is recorded (``nn.ProtoVariable``), NNabla runs
    functions whose inputs are all parameters at once and records their result
    as a constant: everything between a weight and its layer would be lost.
    An identity that is recorded by hand keeps it in the graph. In a live graph
    the parameter is returned as it is.
    """
    if not isinstance(like, nn.ProtoVariable):
        return parameter
    from nnabla.core.graph_def import ProtoFunction
    from nnabla.function import Identity

    function = ProtoFunction(Identity(nn.get_current_context()), "Identity", {})
    return function([parameter], 1)
