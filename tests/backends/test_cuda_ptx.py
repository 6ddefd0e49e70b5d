"""The committed PTX: of these sources, for old drivers and GPUs, rounding as the CPU does."""

from __future__ import annotations

import ctypes
import re
import shutil
import subprocess

import pytest

from nnabla_dqa.backends.cuda import ptx as cuda_ptx
from nnabla_dqa.backends.cuda.activations import ActivationParams
from nnabla_dqa.backends.cuda.plan import THREADS, FiniteParams, KernelParams

PTX = (cuda_ptx.FOLDER / "mixture.ptx").read_text("utf-8")
TEXTS = {name: (cuda_ptx.FOLDER / name).read_text("utf-8") for name in cuda_ptx.SOURCES}


def test_is_of_these_sources():
    assert cuda_ptx.read() == PTX
    assert cuda_ptx.marked(PTX, TEXTS).count(cuda_ptx.checksum(TEXTS)) == 2


def test_line_ends_do_not_matter():
    windows = {name: text.replace("\n", "\r\n") for name, text in TEXTS.items()}
    assert cuda_ptx.checksum(windows) == cuda_ptx.checksum(TEXTS)


def test_every_source_is_in_the_checksum():
    included = {name for text in TEXTS.values() for name in re.findall(r'#include "(.+)"', text)}
    assert included | {"mixture.cu"} == set(TEXTS)


def test_is_for_old_drivers_and_gpus():
    assert re.findall(r"^\.version (.+)$", PTX, re.M) == ["7.0"]
    assert re.findall(r"^\.target (.+)$", PTX, re.M) == ["sm_52"]


def test_has_every_kernel_with_one_argument():
    defined = re.findall(r"^DQA_KERNEL (\w+)\(const (\w+) work\)", "".join(TEXTS.values()), re.M)
    assert sorted(cuda_ptx.kernels(PTX)) == sorted(name for name, _ in defined)
    found = re.findall(r"\.param \.align 8 \.b8 (\w+)_param_0\[(\d+)\]\n\)", PTX)
    arguments = {
        "Work": KernelParams, "Numbers": FiniteParams, "ActivationWork": ActivationParams
    }  # fmt: skip
    sizes = {name: str(ctypes.sizeof(arguments[kind])) for name, kind in defined}
    assert dict(found) == sizes
    assert PTX.count(f".maxntid {THREADS}, 1, 1") == len(defined)


def test_rounds_products_and_sums_one_by_one():
    """No fused product and sum, no approximate division, in float32."""
    operations = set(re.findall(r"^\s+(?:@\S+ )?([a-z][\w.]*\.f32)\b", PTX, re.M))
    assert {"mul.rn.f32", "add.rn.f32", "rcp.rn.f32", "sqrt.rn.f32"} <= operations
    for name in operations:
        assert name.split(".")[0] not in ("fma", "mad"), name
        assert "approx" not in name, name
        assert "ftz" not in name, name
    assert not {"mul.f32", "add.f32", "sub.f32", "div.f32"} & operations


def test_keeps_nothing_in_the_memory_of_a_thread():
    """Which a driver would set aside for as many threads as the GPU has."""
    assert ".local" not in PTX


@pytest.mark.slow
@pytest.mark.parametrize("tool", ["ptxas", "nvcc"])
def test_compiles(tool, tmp_path):
    """With whatever CUDA is installed here, for the GPU that it takes by default."""
    path = shutil.which(tool)
    if path is None:
        pytest.skip(f"no {tool} here")
    source = "mixture.ptx" if tool == "ptxas" else "mixture.cu"
    # The default of ptxas may be older than what it can make.
    options = ["-arch=sm_80"] if tool == "ptxas" else ["-std=c++17", "--fmad=false", "-cubin"]
    command = [path, *options, str(cuda_ptx.FOLDER / source), "-o", str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "warning" not in done.stderr
