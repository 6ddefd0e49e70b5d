"""Launching by CUDA's driver: a driver whose GPUs are the CPU takes the place of the real one."""

from __future__ import annotations

import importlib.util
import shutil

import nnabla as nn
import nnabla.functions as F
import numpy as np
import pytest

from nnabla_dqa import BWN, SAWB, TWN, FullPrecision, MinMax
from nnabla_dqa.backends import BackendError, backend, portable
from nnabla_dqa.backends.cuda import driver as cuda_driver
from nnabla_dqa.backends.cuda import launch as cuda
from nnabla_dqa.backends.cuda import ptx as cuda_ptx
from nnabla_dqa.backends.fused import attended_mixture, fused_mixture
from nnabla_dqa.backends.kernel_args import AttentionSpec, LayerSpec
from nnabla_dqa.backends.select import fused_kernels
from nnabla_dqa.layers.scopes import make_mixture
from tests.backends.emulation.device import library

pytestmark = pytest.mark.slow

MEMORY = nn.Context(["cpu:float"], "CpuCachedArray", "1")
CUDNN = nn.Context(["cudnn:float", "cuda:float", "cpu:float"], "CudaCachedArray", "0")
SETS = {
    "minmax": [MinMax(2), MinMax(4), MinMax(8)],
    "channels": [MinMax(2, 1), SAWB(3, 1), TWN(channel_axis=1)],
    "search": [SAWB(2), SAWB(4)],
    "binary": [BWN(), TWN(), FullPrecision()],
    "one": [MinMax(4)],
}


@pytest.fixture
def driver(monkeypatch):
    """The driver of two GPUs of compute capability 9.0, and nothing remembered of another one."""
    fake = cuda_driver.declared(library())
    fake.describe(12020, 2, 90)
    monkeypatch.setattr(cuda_driver, "library", lambda: fake)
    monkeypatch.setattr(cuda, "expected", lambda: True)
    cuda_driver.module.cache_clear()
    cuda.why_not.cache_clear()
    yield fake
    cuda_driver.module.cache_clear()
    cuda.why_not.cache_clear()


def results(mixture, w, shares, upstream):
    """q and the gradients after two backward passes, the second of which adds."""
    v = nn.Variable.from_numpy_array(w, need_grad=True)
    a = None if shares is None else nn.Variable.from_numpy_array(shares, need_grad=True)
    q = mixture(v, a)
    v.grad.zero()
    if a is not None:
        a.grad.zero()
    for _ in range(2):
        q.forward()
        q.backward(upstream)
    return [q.d.copy(), v.g.copy(), *([] if a is None else [a.g.copy()])]


@pytest.mark.parametrize("name", SETS)
def test_a_graph_computes_what_the_portable_one_does(driver, name):
    quantizers, rng = SETS[name], np.random.RandomState(0)
    w, upstream = rng.randn(2, 60, 40).astype(np.float32)
    shares = rng.dirichlet(np.ones(len(quantizers)), 1).astype(np.float32)
    shares = shares if len(quantizers) > 1 else None

    def fused(v, a):
        kernels = cuda.CudaKernels(LayerSpec.of(v.shape, quantizers), MEMORY)
        return fused_mixture(v, quantizers, a, kernels, MEMORY)

    with nn.context_scope(MEMORY):
        found = results(fused, w, shares, upstream)
        expected = results(lambda v, a: portable.mixture(v, quantizers, a), w, shares, upstream)
    for one, other in zip(found, expected):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)
    assert driver.made() == 1
    assert driver.depth() == 0


@pytest.mark.parametrize("penalised", [False, True])
def test_a_graph_with_attention_computes_what_the_portable_one_does(driver, penalised):
    mixture, rng = make_mixture(*SETS["minmax"]), np.random.RandomState(0)
    w, upstream = rng.randn(2, 60, 40).astype(np.float32)
    alpha = np.array([0.3, 0.1, -0.2], np.float32)
    found = []

    def fused(v, state):
        spec = LayerSpec.of(v.shape, mixture.quantizers, AttentionSpec.of(mixture.mixing))
        return attended_mixture(v, mixture, state, cuda.CudaKernels(spec, MEMORY), MEMORY)

    def standard(v, state):
        a = mixture.coefficients(state)
        return portable.mixture(v, mixture.quantizers, a), a

    with nn.context_scope(MEMORY):
        for build in (fused, standard):
            v = nn.Variable.from_numpy_array(w, need_grad=True)
            values = {"alpha": alpha, "temperature": np.ones(1), "hard": np.zeros(3)}
            state = {k: nn.Variable.from_numpy_array(x) for k, x in values.items()}
            state["alpha"].need_grad = True
            q, a = build(v, state)
            loss = F.sum(F.mul2(q, nn.Variable.from_numpy_array(upstream)))
            loss = F.add2(loss, F.sum(F.mul2(a, a))) if penalised else loss
            v.grad.zero()
            state["alpha"].grad.zero()
            for _ in range(2):
                loss.forward()
                loss.backward()
            found.append([q.d.copy(), a.d.copy(), v.g.copy(), state["alpha"].g.copy()])
    for one, other in zip(*found):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)


def test_without_gradients_of_the_shares_weights_get_theirs(driver):
    w = np.random.RandomState(0).randn(7, 5).astype(np.float32)
    with nn.context_scope(MEMORY):
        v = nn.Variable.from_numpy_array(w, need_grad=True)
        a = nn.Variable.from_numpy_array(np.full((1, 3), 1 / 3), need_grad=False)
        kernels = cuda.CudaKernels(LayerSpec.of(w.shape, SETS["minmax"]), MEMORY)
        q = fused_mixture(v, SETS["minmax"], a, kernels, MEMORY)
        q.forward()
        v.g = 1.0
        q.backward(w)
    np.testing.assert_array_equal(v.g, w + 1.0)


def test_module_is_loaded_once_for_each_gpu(driver):
    for device in (0, 1, 0, 1):
        cuda_driver.module(device)
    assert driver.made() == 2


@pytest.mark.parametrize(
    ("name", "code", "said"),
    [
        ("cuInit", 999, "cuInit: error (999), unknown;"),
        ("cuDeviceGet", 101, "cuDeviceGet (GPU 0): CUDA_ERROR_INVALID_DEVICE (101), unknown;"),
        ("cuModuleLoadDataEx", 218, "mixture.ptx on GPU 0): error (218)"),
        ("cuLaunchKernel", 700, "dqa_mix on GPU 0): CUDA_ERROR_ILLEGAL_ADDRESS (700), an illegal"),
    ],
)
def test_errors_are_one_line_that_says_what_to_do(driver, name, code, said):
    driver.fail(name.encode(), code)
    with pytest.raises(cuda_driver.CudaError) as error:
        cuda_driver.module(0).launch("dqa_mix", 1, 256, 0, cuda.KernelParams())
    message = str(error.value)
    assert said in message
    assert cuda_driver.ADVICE in message
    assert "\n" not in message
    assert ("line 7 bad" in message) == (name == "cuModuleLoadDataEx")
    assert driver.depth() == 0


def test_a_missing_gpu_is_an_error(driver):
    with pytest.raises(cuda_driver.CudaError, match=r"cuDeviceGet \(GPU 5\): CUDA_ERROR_INVALID"):
        cuda_driver.module(5)


def test_an_error_comes_out_of_the_graph(driver):
    with nn.context_scope(MEMORY):
        v = nn.Variable.from_numpy_array(np.ones((3, 4), np.float32))
        kernels = cuda.CudaKernels(LayerSpec.of(v.shape, SETS["one"]), MEMORY)
        q = fused_mixture(v, SETS["one"], None, kernels, MEMORY)
        driver.fail(b"cuLaunchKernel", 700)
        with pytest.raises(SystemError) as error:
            q.forward()
    # NNabla's own error comes around it.
    assert "CUDA_ERROR_ILLEGAL_ADDRESS" in str(error.value.__cause__)
    assert driver.depth() == 0


def test_what_keeps_a_gpu_from_them_is_said_where_the_layer_is_built(driver):
    driver.fail(b"cuModuleLoadDataEx", 218)
    with pytest.raises(cuda_driver.CudaError, match="the driver says: line 7 bad"):
        cuda.CudaKernels(LayerSpec.of((3, 4), SETS["one"]), CUDNN)


@pytest.mark.parametrize(
    ("version", "gpus", "capability", "said"),
    [
        (12020, 2, 90, ""),
        (11000, 1, 52, ""),
        (10020, 2, 90, "the driver is older than CUDA 11.0: install a newer one"),
        (12020, 0, 90, "no GPU of compute capability 5.2 or above"),
        (12020, 2, 50, "no GPU of compute capability 5.2 or above"),
    ],
)
def test_why_they_cannot_be_used(driver, version, gpus, capability, said):
    driver.describe(version, gpus, capability)
    assert cuda.why_not() == said
    assert driver.made() == 0


def test_without_a_gpu_the_reason_is_cudas(driver):
    driver.fail(b"cuInit", 101)
    assert cuda.why_not().startswith("cuInit: CUDA_ERROR_INVALID_DEVICE (101)")


def test_without_a_driver_the_reason_is_that():
    if shutil.which("nvidia-smi"):
        pytest.skip("this machine has a driver")
    assert cuda_driver.why_not().startswith("NVIDIA's driver is missing or too old: ")


def test_without_the_extension_the_driver_is_not_touched(monkeypatch):
    def touched():
        raise AssertionError

    monkeypatch.setattr(cuda_driver, "library", touched)
    monkeypatch.setattr(cuda, "expected", lambda: False)
    cuda.why_not.cache_clear()
    assert cuda.why_not() == "NNabla's CUDA extension is not installed"
    cuda.why_not.cache_clear()


def test_old_ptx_is_noticed(driver, monkeypatch, tmp_path):
    for path in cuda_ptx.FOLDER.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    monkeypatch.setattr(cuda_ptx, "FOLDER", tmp_path)
    assert cuda_driver.why_not() == ""
    with (tmp_path / "grid.h").open("a") as file:
        file.write("// another one\n")
    assert "made of other sources" in cuda_driver.why_not()
    (tmp_path / "mixture.ptx").unlink()
    assert "mixture.ptx" in cuda_driver.why_not()


def test_a_context_of_cudnn_gets_them(driver):
    with backend("fused"):
        assert fused_kernels(CUDNN) == (cuda.CudaKernels, "")
    driver.describe(12020, 0, 0)
    cuda.why_not.cache_clear()
    with backend("fused"), pytest.raises(BackendError, match="on cuda: no GPU of compute"):
        fused_kernels(CUDNN)


def test_expected_is_whether_the_extension_is_installed():
    try:
        installed = importlib.util.find_spec("nnabla_ext.cuda") is not None
    except ModuleNotFoundError:
        installed = False
    assert cuda.expected() == installed
