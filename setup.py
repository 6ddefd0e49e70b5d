"""Package definition. Tools are configured in pyproject.toml; `make` sets everything up."""

import pathlib
import runpy
import zlib

from setuptools import Extension, find_packages, setup
from setuptools.command.build_ext import build_ext

HERE = pathlib.Path(__file__).parent
VERSION = runpy.run_path(str(HERE / "nnabla_dqa" / "_version.py"))["__version__"]

DEMO = ["scikit-learn>=1.3,<2", "matplotlib>=3.7,<4"]
LINUX = "sys_platform == 'linux' and platform_machine == 'x86_64'"
MPI = [f"mpi4py>=4.1,<5; {LINUX}", f"mpich>=5,<6; {LINUX}"]
# The last version before NumPy 2 was required; the first that decodes to RGB. 50 MB.
PHOTOS = ["opencv-python-headless>=4.11,<4.12"]
TEST = ["pytest>=7.4,<10", "pytest-xdist>=3,<4", "hypothesis>=6.90,<7"]
LINT = ["ruff>=0.4,<1", "mypy>=1.8,<3"]
NNABLA = ">=1.39,<1.40"
CUDA = {f"cuda{v}": [f"nnabla-ext-cuda{v}{NNABLA}"] for v in ("110", "116", "120")}

# The kernels of the fused mixture. Without a C++ compiler the package installs without them.
KERNELS = "nnabla_dqa/backends/kernels"
PARTS = (
    "cpu.cpp",
    "cpu_kernels.h",
    "cpu_vectors.h",
    "cpu_search.h",
    "cpu_columns.h",
    "attention.h",
    "grid.h",
)
SOURCES = [f"{KERNELS}/{name}" for name in PARTS]
CHECKSUM = 0
for path in SOURCES:
    CHECKSUM = zlib.crc32((HERE / path).read_bytes(), CHECKSUM)
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
    package_data={"nnabla_dqa": ["py.typed", "backends/kernels/*"]},
    ext_modules=[
        Extension(
            "nnabla_dqa.backends._cpu",
            sources=SOURCES[:1],
            depends=SOURCES[1:],
            define_macros=[("DQA_SOURCES", str(CHECKSUM & 0x7FFFFFFF))],
            language="c++",
            optional=True,
        )
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
        "mpi": MPI,
        "photos": PHOTOS,
        "test": DEMO + MPI + PHOTOS + TEST + LINT,
        **CUDA,
    },
    classifiers=[
        "Programming Language :: Python :: 3.9",
        "Programming Language :: Python :: 3.10",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        "Typing :: Typed",
    ],
)
