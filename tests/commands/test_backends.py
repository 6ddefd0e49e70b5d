"""What computes the mixtures, as the command line says it."""

from __future__ import annotations

import pytest

from nnabla_dqa import available_backends
from nnabla_dqa.cli import main


@pytest.mark.parametrize("chosen", ["", "portable"])
def test_a_line_for_each_device(chosen, capsys, monkeypatch):
    monkeypatch.setenv("NNABLA_DQA_BACKEND", chosen)
    assert main(["backends"]) == 0
    cpu, cuda, last = capsys.readouterr().out.splitlines()
    assert cpu == f"cpu   {available_backends()['cpu']}"
    assert cuda == f"cuda  {available_backends()['cuda']}"
    assert last == f"chosen: {chosen or 'auto'}"


def test_a_choice_that_does_not_exist(capsys, monkeypatch):
    monkeypatch.setenv("NNABLA_DQA_BACKEND", "fast")
    assert main(["backends"]) == 2
    assert capsys.readouterr().err == (
        "nnabla-dqa: NNABLA_DQA_BACKEND='fast' is none of auto, fused, portable\n"
    )
