"""Contexts that are there or not, and the scale of the loss."""

from __future__ import annotations

import os

import nnabla as nn
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nnabla_dqa._util.devices import float_context, is_half
from nnabla_dqa.training import loss_scaler
from nnabla_dqa.training.loss_scaler import ContextError, LossScaler, make_context
from tests.training.files import one_line

HALF = ["cudnn:half", "cudnn:float", "cuda:half", "cuda:float", "cpu:float"]


def refused(*arguments, **options):
    with pytest.raises(ContextError) as error:
        make_context(*arguments, **options)
    return one_line(error)


def test_the_cpu():
    context = make_context()
    assert context.backend == ["cpu:float"]
    assert not is_half(context)
    assert float_context(context).backend == ["cpu:float"]


def test_contexts_that_are_not_there():
    assert "half needs a GPU" in refused("cpu", "half")
    assert "'double' is neither" in refused("cpu", "double")
    assert "'cuda12' is none of cpu, cudnn, cuda" in refused("cuda12")
    assert "'' is none of" in refused("")


def test_without_the_extension(monkeypatch):
    def missing(*_, **__):
        raise ModuleNotFoundError("No module named 'nnabla_ext'")

    monkeypatch.setattr(loss_scaler, "get_extension_context", missing)
    monkeypatch.setenv("NNABLA_CUDA_ALLOW_TF32", "")
    for name in ("cudnn", "cuda"):
        assert f"context {name} needs the CUDA extension: pip install" in refused(name)


def test_without_a_gpu(monkeypatch):
    def broken(*_, **__):
        raise RuntimeError("target_specific error in init_cuda\nFailed `cudaGetDevice`: no device")

    monkeypatch.setattr(loss_scaler, "get_extension_context", broken)
    monkeypatch.setenv("NNABLA_CUDA_ALLOW_TF32", "")
    assert "context cudnn, device 3: no such GPU is usable: target_specific" in refused(
        "cudnn", device=3
    )


def test_a_library_that_is_missing_is_named(monkeypatch):
    """The extension is there then, and installing it again would not help."""

    def missing(*_, **__):
        raise ImportError("libcudnn.so.8: cannot open shared object file")

    monkeypatch.setattr(loss_scaler, "get_extension_context", missing)
    monkeypatch.setenv("NNABLA_CUDA_ALLOW_TF32", "")
    text = refused("cudnn")
    assert "is installed and cannot be loaded: libcudnn.so.8: cannot open" in text
    assert "pip install" not in text


def test_errors_of_the_driver_are_no_runtime_errors(monkeypatch):
    class NVMLError(Exception):
        """As of pynvml."""

    def broken(*_, **__):
        raise NVMLError("Driver Not Loaded")

    monkeypatch.setattr(loss_scaler, "get_extension_context", broken)
    monkeypatch.setenv("NNABLA_CUDA_ALLOW_TF32", "")
    assert "device 9: no such GPU is usable: Driver Not Loaded" in refused("cudnn", device=9)


def test_a_gpu_is_touched_unless_it_is_not_known_whose_it_is(monkeypatch):
    """By memory: an array that is only filled asks the device for nothing."""
    nowhere = nn.Context(["cuda:float"], "NoSuchArray", "9")
    monkeypatch.setattr(loss_scaler, "get_extension_context", lambda *_, **__: nowhere)
    monkeypatch.setenv("NNABLA_CUDA_ALLOW_TF32", "")
    assert make_context("cudnn", device=9, check=False) is nowhere
    text = refused("cudnn", device=9)
    assert text.startswith("context cudnn, device 9: no such GPU is usable: ")
    assert "NoSuchArray" in text
    here = nn.Context(["cpu:float"], "CpuCachedArray", "0")
    monkeypatch.setattr(loss_scaler, "get_extension_context", lambda *_, **__: here)
    assert make_context("cudnn") is here


def test_tf32_is_off_unless_asked_for(monkeypatch):
    asked = []

    def context(name, **options):
        asked.append((name, options, os.environ["NNABLA_CUDA_ALLOW_TF32"]))
        return nn.Context(["cpu:float"], "CpuCachedArray", "0")

    monkeypatch.setattr(loss_scaler, "get_extension_context", context)
    monkeypatch.setenv("NNABLA_CUDA_ALLOW_TF32", "1")
    make_context("cudnn", "half", 2)
    make_context("cuda", tf32=True)
    assert asked == [
        ("cudnn", {"device_id": "2", "type_config": "half"}, "0"),
        ("cuda", {"device_id": "0", "type_config": "float"}, "1"),
    ]


def test_a_half_context_in_float():
    context = nn.Context(HALF, "CudaCachedArray", "3")
    assert is_half(context)
    made = float_context(context)
    assert made.backend == ["cudnn:float", "cuda:float", "cpu:float"]
    assert (made.array_class, made.device_id) == ("CudaCachedArray", "3")
    assert not is_half(made)
    assert context.backend == HALF
    assert float_context(made).backend == made.backend


def test_the_scale_is_halved_at_an_overflow_and_doubled_after_an_interval():
    scaler = LossScaler(scale=8.0, interval=3)
    for _ in range(2):
        scaler.succeeded()
    assert scaler.overflowed()
    assert (scaler.scale, scaler.good) == (4.0, 0)
    scales = []
    for _ in range(7):
        scaler.succeeded()
        scales.append(scaler.scale)
    assert scales == [4, 4, 8, 8, 8, 16, 16]


def test_the_scale_ends_at_1_and_at_2_to_the_24():
    scaler = LossScaler(scale=4.0)
    assert [scaler.overflowed() for _ in range(3)] == [True, True, False]
    scaler = LossScaler(scale=2.0**23, interval=1)
    for _ in range(3):
        scaler.succeeded()
        assert scaler.scale == 2.0**24


@given(st.lists(st.booleans(), max_size=60), st.integers(1, 5))
def test_the_scale_is_a_power_of_two_and_goes_on_from_json(events, interval):
    scaler = LossScaler(interval=interval)
    for event in events:
        other = LossScaler(**scaler.to_json())
        before = scaler.scale
        for each in (scaler, other):
            if event:
                each.succeeded()
            else:
                each.overflowed()
        assert other == scaler
        assert scaler.scale in (before, before * 2, before / 2)
        assert 0 <= scaler.good < interval
