"""What the deployed network of a parameter scope weighs: column ``packed`` of ``summary``."""

from __future__ import annotations

from typing import Any, List, Sequence

import nnabla as nn

from nnabla_dqa.layers.tensors import QuantizedTensor, state_paths
from nnabla_dqa.quantization.encoding import RowLayout, packed_bytes

_FLOAT = 4


def bytes_of_choices(layer: QuantizedTensor) -> List[int]:
    """The bytes of a layer's weights by each of its quantizers: codes and ranges.

    ``ceil(M bits_k / 8) + 8 C_k``: M weights, C_k ranges of a float32 scale and offset each.
    """
    shape = tuple(layer.weight.shape)
    return [
        packed_bytes(layer.weight.size, q.bits, RowLayout.of(shape, q.axis).rows)
        for q in layer.mixture.quantizers
    ]


def float_bytes(scope: Any, layers: Sequence[QuantizedTensor]) -> int:
    """The bytes of all parameters of a scope that stay float32.

    Those of float layers, biases, normalization and its running statistics: all that is neither
    weights of one of the ``layers`` nor state of this package.
    """
    with nn.parameter_scope("", scope):
        parameters = nn.get_parameters(grad_only=False)
    others = set(state_paths(parameters)) | {layer.weight_name for layer in layers}
    return _FLOAT * sum(int(v.size) for name, v in parameters.items() if name not in others)


def bytes_taken(scope: Any, layers: Sequence[QuantizedTensor]) -> int:
    """The bytes of a scope's deployed network: each layer by the quantizer that remains."""
    return float_bytes(scope, layers) + sum(bytes_of_choices(own)[own.target] for own in layers)
