"""Which function of NNabla is written by what."""

from __future__ import annotations

from typing import Callable, Dict

from nnabla_dqa.export.network import Call
from nnabla_dqa.export.onnx.graph import Graph

Writer = Callable[[Graph, Call], None]
WRITERS: Dict[str, Writer] = {}
"""By NNabla's name of a function: what adds its nodes to a graph."""


def writes(*types: str) -> Callable[[Writer], Writer]:
    """Declare the writer of functions of these types."""

    def declare(writer: Writer) -> Writer:
        WRITERS.update(dict.fromkeys(types, writer))
        return writer

    return declare
