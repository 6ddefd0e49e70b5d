"""The layers of an NNP as rows of a report."""

from __future__ import annotations

import nnabla as nn

from nnabla_dqa.layers.report import LayerReport, layer_report
from nnabla_dqa.nnp.expand import state_path
from nnabla_dqa.nnp.file import NetworkFile
from nnabla_dqa.nnp.layers import FileLayer


def file_report(file: NetworkFile, layer: FileLayer) -> LayerReport:
    """The state of one layer of a converted file."""
    mixture = file.mixtures[layer.name]
    scope = state_path(layer.weight)
    entries = [*mixture.mixing.state(mixture.quantizers), "hard"]
    parameters = file.archive.parameters
    state = {
        name: nn.Variable.from_numpy_array(parameters[f"{scope}/{name}"].array)
        for name in (entries if len(mixture.quantizers) > 1 else [])
    }
    shares = mixture.mixing.evaluate(state, len(mixture.quantizers))
    is_hard = not state or bool(state["hard"].d.any())
    return layer_report(layer.name, layer.function, layer.shape, mixture, shares, is_hard)
