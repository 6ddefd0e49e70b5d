"""Which part of a source is trained on, and which one validates."""

from __future__ import annotations

import numpy as np

from nnabla_dqa.training.recipe import Recipe
from nnabla_dqa.training.sources import open_sources
from tests.data.cifar_files import contents, members_of, write_archive
from tests.data.test_cifar_archive import LAYOUT


def test_an_archive_brings_its_validation_part(tmp_path):
    path = write_archive(tmp_path / "cifar.tar.gz", *members_of(LAYOUT, contents(LAYOUT)[0]))
    data, validation, messages = open_sources(Recipe(str(path)))
    assert not messages
    assert len(data) == 5 * len(validation)
    rows = np.arange(len(validation))
    assert (data.batch(rows)["x"] != validation.batch(rows)["x"]).any()
