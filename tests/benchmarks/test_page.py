"""docs/performance.md names commands and constants of the package as they are."""

from __future__ import annotations

import re
from pathlib import Path

from benchmarks.bench.__main__ import parse
from nnabla_dqa.backends.select import VARIABLE
from nnabla_dqa.mixing import Attention

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "performance.md").read_text("utf-8")


def test_the_command_is_understood():
    (options,) = re.findall(r"python -m benchmarks\.bench (--only [^`]*)`", PAGE)
    assert parse(options.split()).only == ["kernels"]


def test_names_and_constants_are_the_packages():
    assert f"{VARIABLE}=portable" in PAGE
    assert f"{Attention.prune_below:.0e}".replace("e-0", "e-") in PAGE
