"""Tests that run on the CPU and, with ``-m gpu`` on a machine that has one, on a GPU.

Where the extension or the GPU is missing the GPU's cases skip and say why. They need only
pytest and numpy beside the package; without the CPU's compiled kernels standard functions
compute what a GPU is compared with.
"""

from __future__ import annotations

import functools
import warnings

import nnabla as nn
import pytest

from nnabla_dqa.backends import BackendWarning, cpu
from nnabla_dqa.training.loss_scaler import ContextError, make_context

CPU = nn.Context(["cpu:float"], "CpuCachedArray", "0")
CPU_HALF = nn.Context(["cpu:half", "cpu:float"], "CpuCachedArray", "0")


@functools.cache
def context_of(name, type_config="float"):
    """The context, or why there is none."""
    if name == "cpu":
        # For the users of the package half precision on the CPU is no context: it is slow.
        return CPU if type_config == "float" else CPU_HALF
    try:
        return make_context(name, type_config)
    except ContextError as error:
        return str(error)


def get(name, type_config="float"):
    """The context; skips the test where there is none."""
    context = context_of(name, type_config)
    if isinstance(context, str):
        pytest.skip(context)
    return context


@pytest.fixture(autouse=True)
def _without_the_cpus_kernels():
    """That they are not compiled is no error here."""
    if not cpu.why_not():
        yield
        return
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*on cpu: ", BackendWarning)
        yield


def fused_in(context):
    """The name of the backend: ``"fused"`` unless it is the CPU's and not compiled."""
    return "auto" if on_cpu(context) and cpu.why_not() else "fused"


def has_kernels(context):
    """Whether there are fused kernels for it; on a GPU there have to be."""
    return not (on_cpu(context) and cpu.why_not())


@pytest.fixture(params=["cpu", pytest.param("cudnn", marks=pytest.mark.gpu)])
def context(request):
    """The CPU's float context, then the GPU's."""
    return get(request.param)


@pytest.fixture(params=["cpu", pytest.param("cudnn", marks=pytest.mark.gpu)])
def half_context(request):
    """The CPU's half context, then the GPU's."""
    return get(request.param, "half")


def on_cpu(context):
    """Whether it is one of the CPU's."""
    return all(backend.startswith("cpu") for backend in context.backend)
