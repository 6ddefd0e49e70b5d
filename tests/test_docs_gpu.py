"""The page "On a GPU": its options exist, and its loop runs."""

from __future__ import annotations

import argparse
import re
from pathlib import Path

import nnabla as nn
import nnabla.functions as F
import nnabla.solvers as S
import numpy as np
import pytest

import nnabla_dqa as dqa
import nnabla_dqa.parametric_functions as PF
from nnabla_dqa.commands import train
from tests.gpu.functions import WITHOUT_CUDA

ROOT = Path(__file__).resolve().parent.parent
PAGE = (ROOT / "docs" / "gpu.md").read_text("utf-8")


def test_options_exist():
    parser = argparse.ArgumentParser()
    train.add(parser)
    named = set(re.findall(r"`(--[a-z0-9-]+)", PAGE))
    known = {option for action in parser._actions for option in action.option_strings}
    assert {"--context", "--device", "--type-config", "--tf32"} <= named
    assert named <= known


@pytest.mark.parametrize("name", sorted(WITHOUT_CUDA))
def test_functions_without_cuda_are_named(name):
    snake = {"NonZero": "nonzero"}.get(name, re.sub("(?<!^)([A-Z])", r"_\1", name).lower())
    assert f"`F.{snake}`" in PAGE


@pytest.mark.parametrize("scale", [8.0, 1e38])
def test_the_loop_runs(scale):
    """In half precision on the CPU; with too high a scale nothing but the schedule moves."""
    (text,) = re.findall(r"^```python\n(.*?)^```$", PAGE, re.S | re.M)
    before, after = text.split("...\n")
    with nn.context_scope(nn.Context(["cpu:half", "cpu:float"], "CpuCachedArray", "0")):
        with dqa.quantizers(dqa.MinMax(2), dqa.MinMax(4), dqa.MinMax(8)):
            rng = np.random.RandomState(0)
            names = {
                "F": F, "S": S, "nn": nn, "dqa": dqa, "steps": 10, "scale": scale,
                "x": nn.Variable.from_numpy_array(rng.randn(8, 4)),
                "t": nn.Variable.from_numpy_array(rng.randint(0, 3, (8, 1))),
                "model": lambda x: PF.dqa_affine(x, 3, name="a", rng=rng),
            }  # fmt: skip
            exec(before, names)
        start = {k: v.d.copy() for k, v in nn.get_parameters().items()}
        names["loss"].forward()
        names["solver"].zero_grad()
        exec(after, names)
    moved = {k for k, v in nn.get_parameters().items() if np.any(v.d != start[k])}
    assert moved == (set(start) if scale == 8.0 else set())
    assert names["solver"].annealer.step == 1
    assert names["scale"] == (8.0 if scale == 8.0 else scale / 2)
