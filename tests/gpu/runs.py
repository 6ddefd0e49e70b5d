"""Short trainings on images that a narrow net tells apart."""

from __future__ import annotations

import numpy as np

from nnabla_dqa.recipes.recipe import Recipe

CLASSES = 4
TRAIN, VALIDATION = 100, 40


def _records(count, seed):
    """CIFAR-10's binary version: a label and 3072 pixels an image."""
    kinds = np.random.RandomState(7).randint(0, 256, (CLASSES, 3 * 32 * 32))
    rng = np.random.RandomState(seed)
    labels = rng.randint(0, CLASSES, count)
    pixels = 0.6 * kinds[labels] + 0.4 * rng.randint(0, 256, (count, 3 * 32 * 32))
    return np.concatenate([labels[:, None], pixels], axis=1).astype(np.uint8).tobytes()


def write_images(folder):
    """A folder as CIFAR-10 comes, with few images."""
    folder.mkdir()
    for i in range(1, 6):
        (folder / f"data_batch_{i}.bin").write_bytes(_records(TRAIN // 5, i))
    (folder / "test_batch.bin").write_bytes(_records(VALIDATION, 6))
    return folder


def experiment(folder, model=None, **options):
    """A recipe for :func:`write_images`, three epochs of five updates unless ``options`` differ."""
    if not (folder / "images").exists():
        write_images(folder / "images")
    recipe = {
        "preset": "paper-cifar",
        "data": {"train": str(folder / "images"), "augment": "none", "workers": 0},
        "model": {"name": "resnet8_32", "width": 0.25, "stem_stride": 2, **(model or {})},
        "quantizers": "minmax:2,4,8",
        "epochs": 3,
        "batch_size": 20,
        "learning_rate": 0.05,
        "lr_schedule": "cosine",
        "hard_fraction": 0.4,
        **options,
    }
    return Recipe.from_mapping(recipe)
