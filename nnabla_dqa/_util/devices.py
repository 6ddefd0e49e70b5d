"""Half precision: which contexts have it, and float32 for the functions that must not.

A quantizer's grid would be rounded to half precision's 11 bits and attention's
exponentials would leave its range. What makes the weights of a layer is therefore
built in float32 on the same device; NNabla converts at the border.
"""

from __future__ import annotations

import contextlib
from typing import Iterator

import nnabla as nn


def is_half(context: nn.Context) -> bool:
    """Whether functions made in ``context`` compute in half precision where they can."""
    # cudnn:half, and NNabla's cudnn:mixed_half.
    return any(backend.endswith("half") for backend in context.backend)


def float_context(context: nn.Context) -> nn.Context:
    """``context`` in float32, on the same device."""
    backends = [
        f"{backend.partition(':')[0]}:float" if backend.endswith("half") else backend
        for backend in context.backend
    ]
    # Each backend once, in order: a half context falls back to float ones already.
    backends = list(dict.fromkeys(backends))
    return nn.Context(backends, array_class=context.array_class, device_id=context.device_id)


@contextlib.contextmanager
def in_float32() -> Iterator[None]:
    """Functions made in this block compute in float32, on the device of the current context."""
    context = nn.get_current_context()
    if not is_half(context):
        yield
        return
    with nn.context_scope(float_context(context)):
        yield
