"""The differences in the table of examples/nnp/run.py."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from tests.examples.scripts import load

ROOT = Path(__file__).parents[2]


def row(method, quantizers, *accuracies, net="a"):
    return {"method": method, "quantizers": quantizers, "accuracies": accuracies, "net": net}


@pytest.fixture(scope="module")
def script():
    return load(ROOT / "examples" / "nnp" / "run.py")


@pytest.fixture(scope="module")
def difference(script):
    return script.difference


PLAIN = (row("plain", "minmax:2", 98.0, 99.0, 100.0), row("plain", "bwn", 90.0, 92.0))


def test_is_to_plain_training_with_what_remains(difference):
    error = math.sqrt(1 / 3 + 0.5 / 2)
    dqa = row("DQA", "minmax:2,4,8", 99.0, 100.0)
    assert difference(dqa, PLAIN) == f"+0.50 ± {error:.2f}"
    assert difference(row("DQA", "bwn/twn/float", 90.0, 90.0), PLAIN) == "-1.00 ± 1.00"
    assert difference(PLAIN[0], ()) == "-"


def test_levels_of_its_own_stand_beside_the_plain_row_before(difference):
    assert difference(row("PARQ", "parq:1", 92.0, 92.0), PLAIN) == "+1.00 ± 1.00"
    assert difference(row("DQA", "sawb:2,4,8", 92.0, 92.0), PLAIN) == "-"
    assert difference(row("DQA", "minmax:2,4,8", 99.0, net="b"), PLAIN) == "-"


def test_a_single_run_has_no_standard_error(difference):
    assert difference(row("DQA", "minmax:2,4,8", 99.5), PLAIN) == "+0.50"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ((), "nowhere/20_k00_mnist_conv2_bn_lrelu.nnp: there is no such file"),
        (("--only", "lenet-9"), "--only lenet-9: no row"),
    ],
)
def test_what_is_not_there_is_one_line_before_anything_runs(script, capsys, options, message):
    with pytest.raises(SystemExit):
        script.main(["--nnp", "nowhere", "--mnist", "nowhere", *options])
    assert message in capsys.readouterr().err.splitlines()[-1]
