"""Compile the CUDA kernels: nnabla_dqa/backends/kernels/mixture.cu into mixture.ptx beside it.

    python -m venv /tmp/cuda
    /tmp/cuda/bin/pip install nvidia-cuda-nvrtc-cu11==11.8.89 nvidia-cuda-nvcc-cu11==11.8.89
    /tmp/cuda/bin/python scripts/compile_cuda.py

The result is committed, so that users need no compiler. The compiler is NVRTC
11.8, the last one that knows GPUs as old as NNabla's extensions support. The
PTX is marked with the version of CUDA 11.0, the oldest of them: a driver
refuses PTX that is newer than itself. Every ptxas that is found then has to
assemble it for every GPU it knows, which also proves that nothing in it is
newer than that mark.
"""

from __future__ import annotations

import argparse
import ctypes
import importlib.util
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

KERNELS = Path(__file__).resolve().parent.parent / "nnabla_dqa" / "backends" / "kernels"
sys.path.insert(0, str(KERNELS.parent / "cuda"))
from ptx import CAPABILITY, SOURCES, marked  # noqa: E402

COMPILER = (11, 8)
OPTIONS = [
    f"--gpu-architecture=compute_{CAPABILITY[0]}{CAPABILITY[1]}",
    "--std=c++17",
    # Products and sums are rounded one by one, as on the CPU.
    "--fmad=false",
]
GPUS = ("52", "53", "60", "61", "70", "75", "80", "86", "89", "90", "100", "120")
# NVRTC has no folder of headers.
HEADERS = {
    "math.h": """
#define NAN __int_as_float(0x7fffffff)
#define INFINITY __int_as_float(0x7f800000)
""",
    "stdint.h": """
typedef unsigned char uint8_t;
typedef int int32_t;
typedef unsigned int uint32_t;
typedef long long int64_t;
""",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("-o", "--output", type=Path, default=KERNELS / "mixture.ptx")
    parser.add_argument("--nvrtc", type=Path, help="libnvrtc.so.11.2 instead of pip's")
    options = parser.parse_args()
    texts = {name: (KERNELS / name).read_text("utf-8") for name in SOURCES}
    ptx = marked(_compiled(_nvrtc(options.nvrtc), texts), texts)
    for ptxas in _assemblers():
        _assemble(ptxas, ptx)
    options.output.write_text(ptx, "utf-8")


def _package(name: str) -> Path | None:
    found = importlib.util.find_spec("nvidia")
    folders = [Path(p) / name for p in (found.submodule_search_locations or [])] if found else []
    return next((folder for folder in folders if folder.is_dir()), None)


def _nvrtc(given: Path | None) -> ctypes.CDLL:
    folder = _package("cuda_nvrtc")
    path = given or (folder and folder / "lib" / "libnvrtc.so.11.2")
    if not path or not path.is_file():
        sys.exit("no NVRTC: pip install nvidia-cuda-nvrtc-cu11==11.8.89")
    library = ctypes.CDLL(str(path))
    major, minor = ctypes.c_int(), ctypes.c_int()
    library.nvrtcVersion(ctypes.byref(major), ctypes.byref(minor))
    if (major.value, minor.value) != COMPILER:
        sys.exit(f"{path} is NVRTC {major.value}.{minor.value}, not {COMPILER}")
    return library


def _compiled(nvrtc: ctypes.CDLL, texts: dict[str, str]) -> str:
    main, *others = texts
    headers = {**HEADERS, **{name: texts[name] for name in others}}
    names = (ctypes.c_char_p * len(headers))(*[name.encode() for name in headers])
    contents = (ctypes.c_char_p * len(headers))(*[text.encode() for text in headers.values()])
    program = ctypes.c_void_p()
    nvrtc.nvrtcCreateProgram(
        ctypes.byref(program), texts[main].encode(), main.encode(), len(headers), contents, names
    )
    flags = (ctypes.c_char_p * len(OPTIONS))(*[option.encode() for option in OPTIONS])
    failed = nvrtc.nvrtcCompileProgram(program, len(OPTIONS), flags)
    if failed:
        sys.exit(_text(nvrtc, program, "ProgramLog"))
    return _text(nvrtc, program, "PTX")


def _text(nvrtc: ctypes.CDLL, program: ctypes.c_void_p, what: str) -> str:
    size = ctypes.c_size_t()
    getattr(nvrtc, f"nvrtcGet{what}Size")(program, ctypes.byref(size))
    text = ctypes.create_string_buffer(size.value)
    getattr(nvrtc, f"nvrtcGet{what}")(program, text)
    return text.value.decode()


def _assemblers() -> list[str]:
    folder = _package("cuda_nvcc")
    found = [str(folder / "bin" / "ptxas")] if folder else []
    return found + [path for path in [shutil.which("ptxas")] if path]


def _assemble(ptxas: str, ptx: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "mixture.ptx").write_text(ptx, "utf-8")
        for gpu in GPUS:
            command = [ptxas, "-v", f"-arch=sm_{gpu}", "mixture.ptx", "-o", "mixture.cubin"]
            done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
            if "is not defined for option 'gpu-name'" in done.stderr:
                continue
            if done.returncode:
                sys.exit(f"{ptxas} for sm_{gpu}: {done.stderr}")
            registers = [int(n) for n in re.findall(r"Used (\d+) registers", done.stderr)]
            spilled = sum(int(n) for n in re.findall(r"(\d+) bytes spill stores", done.stderr))
            print(f"{ptxas} sm_{gpu}: at most {max(registers)} registers, {spilled} bytes spilled")


if __name__ == "__main__":
    main()
