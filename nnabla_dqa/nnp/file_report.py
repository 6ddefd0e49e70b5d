"""The layers of an NNP as rows of a report."""

from __future__ import annotations

import nnabla as nn

from nnabla_dqa.layers.report import LayerReport, layer_report
from nnabla_dqa.mixing.mixture import HARD
from nnabla_dqa.nnp.expand import state_path
from nnabla_dqa.nnp.file import NetworkFile
from nnabla_dqa.nnp.layers import FileLayer


def file_report(file: NetworkFile, layer: FileLayer) -> LayerReport:
    """The state of one layer of a converted file."""
    mixture = file.mixtures[layer.name]
    scope = state_path(layer.weight)
    parameters = file.archive.parameters
    state = {
        path: nn.Variable.from_numpy_array(parameters[f"{scope}/{path}"].array)
        for path in mixture.state_layout(layer.shape)
    }
    attention = mixture.mixing.evaluate(state, len(mixture.quantizers), mixture.target)
    is_hard = not mixture.is_mixed or bool(state[HARD].d.any())
    return layer_report(layer.name, layer.function, layer.shape, mixture, attention, is_hard)
