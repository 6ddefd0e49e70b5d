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


def content(epochs, *scores):
    rows = [{**row("DQA", "minmax:2,4,8", *scores), "float": 99.2, "recipe": "mnist.yaml"}]
    if epochs:
        rows[0]["epochs"] = epochs
    return {"command": f"run --epochs {epochs}" if epochs else "run", "rows": rows}


def test_lengths_stand_side_by_side_the_shortest_first(script):
    own = script.Recipe.from_yaml(ROOT / "examples" / "nnp" / "mnist.yaml").epochs
    shorter = content(2, 98.0, 99.0)
    shorter["rows"].append({**shorter["rows"][0], "net": "of one length alone"})
    table = script.format_lengths([content(None, 99.0, 99.2), shorter])
    head, _, only, _, source = table.splitlines()
    assert head.endswith(f"| 2 epochs | {own} epochs |")
    assert only == "| a | 99.20 | DQA | `minmax:2,4,8` | 98.50 ± 0.71 | 99.10 ± 0.14 |"
    assert source == "`run --epochs 2` and `run`: mean ± sd over 2 seeds, test images."


def test_runs_of_another_length_have_files_of_their_own(script):
    first = script.ROWS[0]
    longer = first._replace(epochs=9)
    assert script.name(longer, 0) != script.name(first, 0)
    assert script.epochs_of({"rows": [longer._asdict()]}) == 9
