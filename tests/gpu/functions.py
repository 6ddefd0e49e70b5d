"""Where the functions of a graph run."""

from __future__ import annotations

from nnabla_dqa.backends.fused import quantizers_of
from nnabla_dqa.backends.fused_activations import NAME as ACTIVATIONS
from tests.gpu.conftest import on_cpu

WITHOUT_CUDA = {
    "BroadcastTo", "Constant", "GlobalAveragePooling", "NonZero", "RandomShift", "Shift", "Unique",
}  # fmt: skip
"""Functions without a CUDA version in NNabla 1.39: on a GPU, copies to the CPU and back."""


def foreign_functions(y, context):
    """The functions of a graph that leave the device.

    On a GPU, those whose name is not that of a CUDA version, but for the
    fused mixtures; on the CPU, those that are known to have none.
    """
    names = set()

    def note(f):
        if quantizers_of(f) is None and f.info.type_name != ACTIVATIONS:
            names.add(f.info.type_name if on_cpu(context) else f.name)

    y.visit(note)
    if on_cpu(context):
        return names & WITHOUT_CUDA
    return {name for name in names if "Cuda" not in name}
