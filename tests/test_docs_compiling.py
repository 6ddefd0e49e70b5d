"""The page on the compiled kernels, and the benchmark whose results it shows."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import nnabla_dqa as dqa
from nnabla_dqa.backends.select import VARIABLE

ROOT = Path(__file__).resolve().parent.parent
PAGE = (ROOT / "docs" / "compiling.md").read_text("utf-8")
RESULTS = json.loads((ROOT / "results" / "compiled.json").read_text("utf-8"))


def readme_script():
    spec = importlib.util.spec_from_file_location("readme", ROOT / "scripts" / "readme.py")
    module = importlib.util.module_from_spec(spec)
    before = list(sys.path)
    spec.loader.exec_module(module)
    sys.path[:] = before
    return module


def test_the_table_is_that_of_the_results():
    shown = re.search(r"<!-- compiled:begin -->\n(.*?)\n<!-- compiled:end -->", PAGE, re.S)[1]
    assert shown == readme_script().compiled(RESULTS)


def test_what_the_page_says_of_the_results():
    def median(what, side, threads=1):
        (row,) = (
            row
            for row in RESULTS["speed"]
            if row["shape"] == [512, 512, 3, 3] and (row["what"], row["threads"]) == (what, threads)
        )
        return row["ms"][side]["median"]

    start = {row["what"]: row["median_ms"] for row in RESULTS["start"]}
    assert 1 < median("forward", "numba") / median("forward", "kernels") < 1.5
    assert 0.5 < median("backward", "numba") / median("backward", "kernels") < 1
    assert start["kernels"] < 50
    for threads in ("one thread", "all threads"):
        assert 300 < start[f"numba, {threads}, filled cache"] < 1500
        assert start[f"numba, {threads}, empty cache"] > 2000
    numba, kernels = (RESULTS["install"][side] for side in ("numba", "kernels"))
    assert numba["installed_bytes"] > 100 * kernels["installed_bytes"]


def test_what_the_page_names_exists():
    for path in re.findall(r"`((?:benchmarks|nnabla_dqa)/[\w/]+(?:\.py|/))`", PAGE):
        assert (ROOT / path).exists(), path
    setup = (ROOT / "setup.py").read_text("utf-8")
    sources = "".join(p.read_text("utf-8") for p in (ROOT / "nnabla_dqa" / "kernels").iterdir())
    assert "-ffp-contract=off" in setup
    assert "-ffp-contract=off" in PAGE
    assert "DQA_NO_VECTORS" in sources
    assert f"{VARIABLE}=fused" in PAGE
    assert "cpu" in dqa.available_backends()


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
