"""docs/performance.md: its tables are those of results/, its commands and names exist."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

import nnabla_dqa as dqa
from benchmarks.bench import tables
from benchmarks.bench.__main__ import parse
from nnabla_dqa.backends.select import VARIABLE
from nnabla_dqa.mixing import Attention

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "performance.md").read_text("utf-8")
MEASURED = [json.loads(p.read_text("utf-8")) for p in sorted(ROOT.glob("results/bench-*.json"))]


@pytest.mark.parametrize("name", list(tables.TABLES))
def test_tables_are_those_of_the_results(name):
    pattern = rf"<!-- {name}:begin -->\n(.*?)\n<!-- {name}:end -->"
    (found,) = re.findall(pattern, PAGE, re.S)
    assert found == tables.page_part(name, MEASURED)


def test_commands_and_names_exist():
    assert re.search(r"^bench: setup\n\t\$\(PY\) -m benchmarks\.bench$", _read("Makefile"), re.M)
    (options,) = re.findall(r"python -m benchmarks\.bench (--only [^`]*)`", PAGE)
    assert parse(options.split()).only == ["kernels"]
    assert f"{VARIABLE}=portable" in PAGE
    assert "NNABLA_DQA_THREADS" in _read("nnabla_dqa/backends/cpu.py")
    assert f"{Attention.prune_below:.0e}".replace("e-0", "e-") in PAGE
    assert "dqa.available_backends()" in PAGE
    with dqa.backend("portable"):
        assert dqa.current_backend() == "portable"


def test_old_commands_are_gone():
    for path in (*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("examples/**/*.md")):
        for script in re.findall(r"\bbenchmarks/\w+\.py", path.read_text("utf-8")):
            assert (ROOT / script).is_file(), f"{path.name}: {script}"


def _read(path: str) -> str:
    return (ROOT / path).read_text("utf-8")
