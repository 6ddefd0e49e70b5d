"""Package definition. Tools are configured in pyproject.toml; `make` sets everything up."""

import importlib.metadata
import pathlib
import runpy
import sys
import zlib

from setuptools import Extension, find_packages, setup
from setuptools.command.build_ext import build_ext

HERE = pathlib.Path(__file__).parent
VERSION = runpy.run_path(str(HERE / "nnabla_dqa" / "_version.py"))["__version__"]

REPORT = ["matplotlib>=3.7,<4"]
DEMO = ["scikit-learn>=1.3,<2", *REPORT]
LINUX = "sys_platform == 'linux' and platform_machine == 'x86_64'"
MPI = [f"mpi4py>=4.1,<5; {LINUX}", f"mpich>=5,<6; {LINUX}"]
# The last version before NumPy 2 was required; the first that decodes to RGB. 50 MB.
PHOTOS = ["opencv-python-headless>=4.11,<4.12"]
ONEDNN = [f"onednn-cpu-gomp>=2023.2,<2024; {LINUX}"]
# The last before protobuf 4, which NNabla does not allow; any runtime since opset 18.
ONNX = ["onnx>=1.14,<1.18", "onnxruntime>=1.16,<2"]
# The first that allows NNabla's protobuf; it needs no TensorFlow.
MONITOR = ["tensorboardX>=2.6.2.2,<3"]
# Runs examples/lesson.ipynb.
NOTEBOOK = ["nbclient>=0.8,<1", "nbformat>=5.7,<6", "ipykernel>=6.21,<8"]
TEST = ["pytest>=7.4,<10", "pytest-xdist>=3,<4", "hypothesis>=6.90,<7"]
# pymdown-extensions 11 and later change what mkdocstrings builds on.
DOCS = ["mkdocs>=1.6,<2", "mkdocs-material>=9.5,<10", "mkdocstrings[python]>=0.26,<2"]
DOCS += ["pymdown-extensions>=10.7,<11"]
LINT = ["ruff>=0.4,<1", "mypy>=1.8,<3"]
NNABLA = ">=1.39,<1.40"
CUDA = {f"cuda{v}": [f"nnabla-ext-cuda{v}{NNABLA}"] for v in ("110", "116", "120")}


def cpp_sources(folder):
    """The .cpp files of a folder, its headers, and a checksum; nnabla_dqa/backends/compiled.py
    computes it again."""
    paths = sorted(p for p in (HERE / folder).iterdir() if p.suffix in (".cpp", ".h"))
    checksum = 0
    for path in paths:
        checksum = zlib.crc32(path.read_bytes(), checksum)
    names = [f"{folder}/{path.name}" for path in paths]
    code = [name for name in names if name.endswith(".cpp")]
    return code, [name for name in names if name.endswith(".h")], str(checksum & 0x7FFFFFFF)


# The kernels of the fused mixture. Without a C++ compiler the package installs without them.
KERNELS, KERNEL_HEADERS, KERNELS_CHECKSUM = cpp_sources("nnabla_dqa/backends/kernels")
# The layers on oneDNN. They are compiled against its headers and find the library when they are
# first used; without the headers the package installs without them.
LAYERS, LAYER_HEADERS, LAYERS_CHECKSUM = cpp_sources("nnabla_dqa/onednn/cpp")


def onednn_headers():
    """The folder with oneDNN's headers, as the wheel onednn-devel-cpu-gomp has them."""
    try:
        files = importlib.metadata.files("onednn-devel-cpu-gomp") or []
    except importlib.metadata.PackageNotFoundError:
        return []
    return [str(f.locate().parents[2]) for f in files if str(f).endswith("oneapi/dnnl/dnnl.h")]


# Products and sums have to be rounded one by one, as NNabla rounds them.
GNU = "-O3 -g0 -std=c++17 -ffp-contract=off -fno-math-errno -fno-trapping-math -fvisibility=hidden"
FLAGS = {
    "unix": ([*GNU.split(), "-Wno-psabi", "-pthread"], ["-pthread"]),
    "mingw32": ([*GNU.split(), "-Wno-psabi", "-pthread"], ["-pthread", "-static"]),
    "msvc": (["/O2", "/std:c++17", "/fp:precise", "/EHsc"], []),
}


class BuildKernels(build_ext):
    """Compiles with the flags that the compiler at hand understands."""

    def build_extension(self, ext):
        ext.extra_compile_args, ext.extra_link_args = FLAGS.get(
            self.compiler.compiler_type, ([], [])
        )
        super().build_extension(ext)


setup(
    name="nnabla_dqa",
    version=VERSION,
    description="DNN Quantization with Attention for NNabla: networks with 1- and 2-bit weights",
    long_description=(HERE / "README.md").read_text("utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    packages=find_packages(include=["nnabla_dqa", "nnabla_dqa.*"]),
    py_modules=["nnabla_dqa_command"],
    entry_points={"console_scripts": ["nnabla-dqa=nnabla_dqa_command:main"]},
    package_data={"nnabla_dqa": ["py.typed", "backends/kernels/*", "onednn/cpp/*"]},
    ext_modules=[
        Extension(
            "nnabla_dqa.backends._cpu",
            sources=KERNELS,
            depends=KERNEL_HEADERS,
            define_macros=[("DQA_SOURCES", KERNELS_CHECKSUM)],
            language="c++",
            optional=True,
        ),
        Extension(
            "nnabla_dqa.onednn._layers",
            sources=LAYERS,
            depends=LAYER_HEADERS,
            include_dirs=onednn_headers(),
            define_macros=[("LAYERS_SOURCES", LAYERS_CHECKSUM)],
            libraries=["dl"] if sys.platform == "linux" else [],
            language="c++",
            optional=True,
        ),
    ],
    cmdclass={"build_ext": BuildKernels},
    python_requires=">=3.9,<3.11",
    install_requires=[
        f"nnabla{NNABLA}",
        "numpy>=1.20,<2",
        # NNabla brings these itself; they are named because they are used here too.
        "h5py",
        "pillow",
        "protobuf>=3.19,<4",
        "pyyaml>=5.4",
        "tqdm>=4.60,<5",
    ],
    extras_require={
        "demo": DEMO,
        "docs": DOCS,
        "monitor": MONITOR,
        "mpi": MPI,
        "onednn": ONEDNN,
        "onnx": ONNX,
        "photos": PHOTOS,
        "report": REPORT,
        "test": DEMO + DOCS + MONITOR + MPI + NOTEBOOK + ONEDNN + ONNX + PHOTOS + TEST + LINT,
        **CUDA,
    },
    classifiers=[
        "Programming Language :: Python :: 3.9",
        "Programming Language :: Python :: 3.10",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        "Typing :: Typed",
    ],
)
