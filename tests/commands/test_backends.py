"""What computes the mixtures, as the command line says it."""

from __future__ import annotations

import pytest

from nnabla_dqa import available_backends
from nnabla_dqa.cli import main


@pytest.mark.parametrize("chosen", ["", "portable"])
def test_a_line_for_each_device(chosen, capsys, monkeypatch):
    monkeypatch.setenv("NNABLA_DQA_BACKEND", chosen)
    assert main(["backends"]) == 0
    first, cpu, cuda, second, layers, last = capsys.readouterr().out.splitlines()
    assert (first, second) == ("mixtures", "layers")
    assert cpu == f"  cpu   {available_backends()['cpu']}"
    assert cuda == f"  cuda  {available_backends()['cuda']}"
    assert layers.startswith(("  cpu   oneDNN 3.", "  cpu   NNabla: "))
    assert last == f"chosen: {chosen or 'auto'} for mixtures, auto for layers"


def test_layers_are_chosen_too(capsys, monkeypatch):
    monkeypatch.setenv("NNABLA_DQA_LAYERS", "nnabla")
    assert main(["backends"]) == 0
    assert (
        capsys.readouterr().out.splitlines()[-1] == "chosen: auto for mixtures, nnabla for layers"
    )
    monkeypatch.setenv("NNABLA_DQA_LAYERS", "mkl")
    assert main(["backends"]) == 2
    assert "NNABLA_DQA_LAYERS='mkl' is none of auto, onednn, nnabla" in capsys.readouterr().err


def test_a_choice_that_does_not_exist(capsys, monkeypatch):
    monkeypatch.setenv("NNABLA_DQA_BACKEND", "fast")
    assert main(["backends"]) == 2
    assert capsys.readouterr().err == (
        "nnabla-dqa: NNABLA_DQA_BACKEND='fast' is none of auto, fused, portable\n"
    )
