"""The benchmark whose results docs/compiling.md shows."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[2]


def test_a_missing_numba_is_one_line(tmp_path):
    """Not even looked for beyond its name: an empty search path has none."""
    code = (
        "import importlib.util, runpy, sys\n"
        "find = importlib.util.find_spec\n"
        "importlib.util.find_spec = lambda name, *a: None if name == 'numba' else find(name, *a)\n"
        "sys.argv = ['compiled.py']\n"
        f"runpy.run_path({str(ROOT / 'benchmarks' / 'compiled.py')!r}, run_name='__main__')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, env=os.environ
    )
    assert done.returncode == 1
    assert done.stderr == "benchmarks/compiled.py compares with numba: pip install numba\n"


@pytest.mark.skipif(
    importlib.util.find_spec("numba") is None, reason="numba is no part of this package's needs"
)
def test_numbas_values_are_the_kernels(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import compiled

    shape = (19, 13, 3, 3)
    case = compiled.Case.of(shape)
    ours = compiled.kernel_calls(case, shape, 1)
    compiled.check(ours, compiled.numba_calls(case, parallel=False), case)
    case.w[7] = np.nan
    ours["forward"]()
    assert np.isnan(case.q).all()
