"""What several tests of compiled code need."""

from __future__ import annotations

import pytest

from nnabla_dqa.backends import cpu


@pytest.fixture(params=["avx512", "avx2", "plain"])
def instructions(request):
    """Each set of loops that this machine can run."""
    library = cpu.library()
    before = library.dqa_instruction_set()
    if not library.dqa_use(request.param.encode()):
        pytest.skip(f"this machine cannot run {request.param}")
    yield request.param
    library.dqa_use(before)
