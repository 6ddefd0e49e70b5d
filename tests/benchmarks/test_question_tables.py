"""The tables of docs/questions.md say what those of the other pages say."""

from __future__ import annotations

from benchmarks import question_tables


def row(method, name, mean, key="quantizers", **more):
    return {"method": method, key: name, "mean": mean, **more}


def test_points_lost_against_the_float_net():
    digits = [
        row("Full precision", "-", 98.0, "quantizer"),
        row("Plain", "min-max 2", 96.9, "quantizer"),
        row("DQA", "min-max 2/4/8", 98.2, "quantizer"),
        row("Plain", "TWN", 97.0, "quantizer"),
    ]
    cifar = [row("Full precision", None, 60.0), row("Plain", "sawb:2", 57.0)]
    mnist = [
        {"method": method, "quantizers": name, "float": of, "accuracies": accuracies}
        for method, name, of, accuracies in [
            ("plain", "bwn", 99.0, [98.0, 98.2]),
            ("plain", "bwn", 99.5, [99.2]),
            ("DQA", "bwn/twn/float", 99.0, [99.0]),
        ]
    ]
    lines = question_tables.lost(digits, cifar, cifar, mnist).splitlines()[2:]
    assert lines == [
        "| min-max, 2 bits | 1.1 / -0.2 | - | - | - |",
        "| SAWB, 2 bits | - | 3.0 / - | 3.0 / - | - |",
        "| ternary (TWN) | 1.0 / - | - | - | - |",
        "| 1 bit (BWN) | - | - | - | 0.6 / 0.0 |",
    ]


def test_attention_elsewhere_by_lambda():
    def dqa(name, strength, off, hard=2 / 3, rate="late"):
        more = {"strength": strength, "layers_off_target": off, "hard": hard, "rate": rate}
        return row("DQA", name, 98.04, "quantizer", sd=0.3, seeds=[1, 2], **more)

    rows = [dqa("b", 500, 0), dqa("b", 5, 9), dqa("a", 5, 12)]
    unlike = [dqa("b", 5, 1, hard=0), dqa("b", 5, 1, rate="steps"), {**rows[0], "method": "Plain"}]
    assert question_tables.elsewhere(rows + unlike).splitlines()[2:] == [
        "| b | 5 | 9 of 12 | 98.0 ± 0.3 |",
        "| b | 500 | 0 of 12 | 98.0 ± 0.3 |",
        "| a | 5 | 12 of 12 | 98.0 ± 0.3 |",
    ]


def test_whole_files_against_float():
    digits = [
        {"method": "Full precision", "quantizer": "-", "file_bytes": 40_000},
        {"method": "Plain", "quantizer": "min-max 2", "file_bytes": 8_000},
        {"method": "Plain", "quantizer": "BWN", "file_bytes": 5_000},
    ]
    mnist = [
        {
            "net": "n",
            "method": "plain",
            "quantizers": name,
            "file_bytes": size,
            "parameter_bytes": 1_000,
        }
        for name, size in (("minmax:2", 100), ("bwn", 80))
    ]
    onnx = [{"quantizer": q, "bytes": n} for q, n in (("float", 32), ("MinMax 2", 2), ("BWN", 1))]
    assert question_tables.sizes(digits, mnist, onnx).splitlines()[2:] == [
        "| the demo's net, .nnp | 40,000 | 8,000 (1 / 5.0) | 5,000 (1 / 8.0) |",
        "| `n`, .nnp | 1,000 | 100 (1 / 10.0) | 80 (1 / 12.5) |",
        "| ResNet-18, .onnx | 32 | 2 (1 / 16.0) | 1 (1 / 32.0) |",
    ]
