"""Folders of runs as training leaves them, made without training: of any size, and odd ones."""

from __future__ import annotations

import json
import math

import nnabla as nn
import numpy as np
import yaml

import nnabla_dqa as dqa
import nnabla_dqa.parametric_functions as PF
from nnabla_dqa.training.checkpoint import write_checkpoint

SET = (dqa.MinMax(2), dqa.MinMax(4), dqa.MinMax(8))
RECIPE = {
    "model": "resnet8_32",
    "data": "images",
    "quantizers": "minmax:2,4,8",
    "epochs": 8,
    "batch_size": 16,
    "hard_fraction": 0.5,
}
START = {
    "seed": 0,
    "from_step": 0,
    "command": "nnabla-dqa train",
    "machine": "a machine, 2 cores",
    "context": ["cpu:float"],
    "mixtures": "fused: compiled",
    "layers": "oneDNN 3.2.0",
    "versions": {"python": "3.10", "nnabla": "1.39.0"},
}


def epoch(number, layers, epochs=8, **changes):
    """A record of one epoch, attention moving to the first quantizer."""
    share = min(1.0, 0.4 + number / epochs)
    values = {
        "epoch": number,
        "loss": 2.0 / number,
        "learning_rate": 0.1,
        "hard": number > epochs / 2,
        "metric": "accuracy",
        "score": 0.5 + 0.4 * number / epochs,
        "seconds": 1.5,
        "soft_score": 0.6,
        "temperature": 100.0 * 0.5**number,
        "attention": {name: [share, (1 - share) * 0.7, (1 - share) * 0.3] for name in layers},
    }
    return {**values, **changes}


class Solver:
    """A solver that remembers nothing."""

    def get_states(self):
        return {}


def build(layers=2, size=8):
    """A net of affine layers of the current scope; its input and output."""
    x = nn.Variable((1, size))
    h = x
    for i in range(layers):
        rng = np.random.RandomState(i)
        h = PF.dqa_affine(h, size, name=f"fc{i}", quantizers=SET, rng=rng)
    return x, h


def write_run(
    folder, layers=2, epochs=8, seed=0, result=True, records=None, recipe=None, **changes
):
    """A run; with ``result`` a finished one, and its checkpoint always."""
    folder.mkdir(parents=True)
    keys = {**RECIPE, "epochs": epochs, "seed": seed, **(recipe or {})}
    made = dqa.Recipe.from_mapping(keys)
    (folder / "recipe.yaml").write_text(yaml.safe_dump(made.to_json()))
    start = {**START, "seed": seed, **changes.pop("start", {})}
    (folder / "run.json").write_text(json.dumps({"starts": [start]}))
    nn.clear_parameters()
    x, y = build(layers)
    names = [layer.name for layer in dqa.find_quantized()]
    if records is None:
        records = [epoch(i + 1, names, epochs) for i in range(epochs)]
    arrays = {name: v.d for name, v in nn.get_parameters(grad_only=False).items()}
    write_checkpoint(folder / "checkpoint", arrays, Solver(), {"epochs": records})
    if result:
        with dqa.hard():
            x, y = build(layers)
        deployed = dqa.deploy(folder / "deployed.nnp", {"x": x}, {"y": y}, allow_untrained=True)
        content = {
            "method": "DQA",
            "metric": "accuracy",
            "score": 0.9 + seed / 100,
            "validation_images": 100,
            "off_target": 0,
            "file_bytes": deployed.file_bytes,
            "bits_per_weight": deployed.bits_per_weight,
            "starts": [start],
            "data": {"samples": 64, "checksum": 1},
            "recipe": made.to_json(),
            "epochs": records,
            "messages": [],
        }
        (folder / "result.json").write_text(json.dumps({**content, **changes}))
    nn.clear_parameters()
    return folder


FAILURE = {
    "error": "the loss is nan after 23 steps; the first number that is not finite is in layer fc1",
    "step": 23,
    "epoch": 3,
    "steps_per_epoch": 10,
    "losses": [1.0, 5.0, math.inf],
}
