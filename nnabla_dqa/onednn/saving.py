"""A graph on oneDNN is saved as the graph of NNabla's functions that it stands for."""

from __future__ import annotations

from typing import Any, Callable

from nnabla.backward_functions import registry

from nnabla_dqa.backends.nnabla_hooks import install_hooks, writers
from nnabla_dqa.onednn.function import NAME, part_function
from nnabla_dqa.onednn.library import OneDnnError


def install_writer() -> None:
    """Let NNabla's walk over graphs write the functions of parts. A second call does nothing."""
    install_hooks()
    writers[NAME] = _write
    registry[NAME] = _no_gradient


def _no_gradient(*_: Any, **__: Any) -> None:
    """In the place of the graph of a gradient, for ``nn.grad``."""
    raise OneDnnError(
        "nn.grad does not pass layers on oneDNN (dqa.accelerate): build the graph once more for it"
    )


def _write(write: Callable[[Any], Any], function: Any) -> None:
    """Write the functions of a part, with the arrays of the graph that it belongs to."""
    made = part_function(function)
    assert made is not None
    for own, given in zip(made.inputs, function.inputs):
        own.data = given.data
    for (source, i), given in zip(made.sources, function.outputs):
        source.outputs[i].data = given.data
    for original in made.part.functions:
        write(original)
