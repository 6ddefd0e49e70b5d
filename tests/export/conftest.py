"""The C runtime for the tests of NNB files."""

from __future__ import annotations

import pytest

from benchmarks.c_runtime import VARIABLE, compiled, compiler, sources


@pytest.fixture(scope="session")
def library(tmp_path_factory):
    """The C runtime as a shared library; skips where it cannot be had."""
    folder = sources()
    if folder is None:
        pytest.skip(f"{VARIABLE} names no clone of github.com/sony/nnabla-c-runtime")
    if compiler() is None:
        pytest.skip("there is no C compiler")
    return compiled(folder, tmp_path_factory.mktemp("runtime") / "libnnablart.so")
