"""NNabla's functions as nodes of ONNX, a module for each kind; :data:`WRITERS` has them by name."""

from nnabla_dqa.export.onnx.functions import (  # noqa: F401
    arithmetic,
    arrays,
    elementwise,
    integers,
    layers,
    normalization,
    pooling,
    reductions,
)
from nnabla_dqa.export.onnx.functions.table import WRITERS as WRITERS
