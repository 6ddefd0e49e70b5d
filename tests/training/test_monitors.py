"""Curves of a training, from epochs made by hand."""

from __future__ import annotations

import os

import pytest

from nnabla_dqa.training.monitors import Monitors
from nnabla_dqa.training.result import Epoch


def epoch(number, **options):
    options = {"metric": "accuracy", "score": 0.75, **options}
    return Epoch(number, 1.0 / number, 0.1, False, seconds=1.0, **options)


def text(folder, name):
    return (folder / name).read_text()


def test_a_line_an_epoch_of_what_there_is(tmp_path):
    monitors = Monitors(tmp_path / "m")
    assert os.listdir(tmp_path / "m") == []
    attention = {"a/conv": (0.25, 0.75), "fc": (0.5, 0.5)}
    monitors.add(epoch(1, soft_score=0.5, temperature=100.0, attention=attention))
    monitors.add(epoch(2, training_score=0.875))
    assert text(tmp_path / "m", "loss.series.txt") == "1 1\n2 0.5\n"
    assert text(tmp_path / "m", "score.series.txt") == "1 0.75\n2 0.75\n"
    assert text(tmp_path / "m", "error.series.txt") == "1 0.25\n2 0.25\n"
    assert text(tmp_path / "m", "soft-score.series.txt") == "1 0.5\n"
    assert text(tmp_path / "m", "training-error.series.txt") == "2 0.125\n"
    assert text(tmp_path / "m", "temperature.series.txt") == "1 100\n"
    lines = text(tmp_path / "m", "attention.csv").splitlines()
    assert lines == ["1,a/conv,0.25,0.75", "1,fc,0.5,0.5"]
    assert len(os.listdir(tmp_path / "m")) == 8


@pytest.mark.parametrize(("metric", "score"), [("mean squared error", 3.0), ("", None)])
def test_an_error_is_one_of_accuracy(metric, score, tmp_path):
    Monitors(tmp_path).add(epoch(1, metric=metric, score=score))
    names = {"loss.series.txt", "learning-rate.series.txt"}
    assert set(os.listdir(tmp_path)) == names | ({"score.series.txt"} if metric else set())


def test_the_files_begin_with_the_history(tmp_path):
    """What a stopped training wrote after its last checkpoint is not there twice."""
    history = [epoch(1, attention={"a": (1.0,)}), epoch(2, attention={"a": (0.5,)})]
    first = Monitors(tmp_path)
    for each in history:
        first.add(each)
    second = Monitors(tmp_path, history[:1])
    second.add(epoch(2, attention={"a": (0.25,)}))
    assert text(tmp_path, "loss.series.txt") == "1 1\n2 0.5\n"
    assert text(tmp_path, "attention.csv").splitlines() == ["1,a,1.0", "2,a,0.25"]
