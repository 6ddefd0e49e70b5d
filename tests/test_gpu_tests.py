"""tests/gpu, as a machine with a GPU and little else runs them."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
BARE = """
import sys
for name in ("hypothesis", "setuptools", "mpi4py", "matplotlib", "cv2"):
    sys.modules[name] = None
from nnabla_dqa.backends import cpu
def library():
    raise OSError("its kernels were not compiled")
cpu.library = library
import pytest
sys.exit(pytest.main(sys.argv[1:]))
"""


def run(*arguments):
    command = [sys.executable, "-c", BARE, *arguments]
    environment = {**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)


@pytest.mark.slow
def test_they_need_pytest_and_numpy_alone():
    """Also without the CPU's compiled kernels, which a comparison would use."""
    done = run("tests/gpu", "-m", "gpu", "--collect-only", "-q")
    assert done.returncode == 0, done.stdout + done.stderr
    cases = re.findall(r"^tests/gpu/\S+::", done.stdout, re.M)
    counts = re.findall(r"^tests/gpu/\S+: (\d+)$", done.stdout, re.M)
    assert len(cases) + sum(map(int, counts)) >= 158
    places = ("test_fused.py", "test_layers.py", "test_quantizers.py")
    done = run(*[f"tests/gpu/{place}" for place in places], "-m", "not gpu")
    assert done.returncode == 0, done.stdout + done.stderr
