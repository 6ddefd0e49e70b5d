"""Sets of keys by name: what a recipe with ``preset: NAME`` begins with."""

from __future__ import annotations

from typing import Any, Dict

from nnabla_dqa.recipes.checks import one_of

_PAPER: Dict[str, Any] = {
    "solver": {"type": "Momentum", "momentum": 0.9},
    "learning_rate": 0.1,
    "lr_schedule": "step",
    "temperature": {"start": 100.0, "end": 0.03},
    "hard_fraction": 0.1,
}
PRESETS: Dict[str, Dict[str, Any]] = {
    "fine-tune": {},
    "paper-cifar": {
        **_PAPER,
        "data": {"augment": "crop_flip"},
        "epochs": 300,
        "batch_size": 128,
        "weight_decay": 5e-4,
        "lambda": 5.0,
    },
    "paper-imagenet": {
        **_PAPER,
        "data": {
            "augment": "random_resized_crop",
            "mean": [0.485, 0.456, 0.406],
            "std": [0.229, 0.224, 0.225],
        },
        "epochs": 90,
        "batch_size": 256,
        "weight_decay": 1e-4,
        "lambda": 1.0,
    },
}
"""``fine-tune``: the defaults, for a network that is trained already. ``paper-cifar`` and
``paper-imagenet``: the DQA paper's experiments (arXiv 2103.13322, section 4.1); momentum, weight
decay and augmentation, which it leaves open, are those of the first author's published code."""


def preset(name: Any) -> Dict[str, Any]:
    """The keys of a preset.

    Raises:
        RecipeError: There is none of that name.
    """
    return PRESETS[one_of(*PRESETS)("preset", name)]
