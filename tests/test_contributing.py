"""The quantizer that CONTRIBUTING.md shows works as it is printed there."""

from __future__ import annotations

import re
from pathlib import Path

import nnabla as nn
import numpy as np

import nnabla_dqa as dqa
import nnabla_dqa.parametric_functions as PF
from nnabla_dqa.quantization import quantizer_from_json
from nnabla_dqa.quantization.registry import QUANTIZERS

PAGE = Path(__file__).resolve().parent.parent / "CONTRIBUTING.md"


def test_the_new_quantizer(tmp_path, monkeypatch):
    monkeypatch.setattr(QUANTIZERS, "_types", dict(QUANTIZERS._types))
    module, test = re.findall(r"```python\n(.*?)```", PAGE.read_text("utf-8"), re.S)
    scope = {"__name__": "contributed"}
    exec(compile(module, str(PAGE), "exec", dont_inherit=True), scope)
    exec(compile(test, str(PAGE), "exec", dont_inherit=True), scope)
    quantizer = scope["AbsMean"](channel_axis=0)
    assert quantizer_from_json(quantizer.to_json()) == quantizer
    x = nn.Variable((1, 3, 8, 8))
    set_ = (quantizer, *(dqa.MinMax(b, channel_axis=0) for b in (4, 8)))
    y = PF.dqa_convolution(x, 4, (3, 3), name="c", quantizers=set_)
    result = dqa.deploy(tmp_path / "d.nnp", {"x": x}, {"y": y}, allow_untrained=True)
    assert result.layers[0].values <= 3
    w = nn.graph_def.load(str(tmp_path / "d.nnp")).get_parameters()["c/conv/W"].d
    np.testing.assert_array_equal(w, quantizer.quantize(nn.get_parameters()["c/conv/W"].d))
