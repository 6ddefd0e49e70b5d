"""Tables of docs/questions.md, made of what other pages show whole: lost, elsewhere, sizes."""

from __future__ import annotations

from typing import Any, Dict, Iterable, List, Optional, Sequence

import numpy as np

from benchmarks.bench.tables import markdown

# As the demo, and as recipes, call one quantizer alone and the DQA mixtures that end on it.
_SETS = (
    ("min-max, 2 bits", ("min-max 2", "min-max 2/4/8", "minmax:2", "minmax:2,4,8")),
    ("SAWB, 2 bits", ("SAWB 2", "SAWB 2/4/8", "sawb:2", "sawb:2,4,8")),
    ("ternary (TWN)", ("TWN", "", "twn", "twn/minmax:4,8")),
    ("1 bit (BWN)", ("BWN", "BWN/TWN/FP", "bwn", "bwn/twn/float")),
)


def lost(
    digits: List[Dict[str, Any]], scratch: List[Any], tuned: List[Any], mnist: List[Any]
) -> str:
    """Points that nets with low-bit weights lose against float, plain and with DQA.

    Args:
        digits: Rows of results/digits.json.
        scratch: Rows of results/cifar_table_1.json.
        tuned: Rows of results/neighbours_cifar.json.
        mnist: Rows of results/nnp.json.
    """
    head = ["weights", "the demo, from scratch", "narrow CIFAR-10, from scratch"]
    head += ["narrow CIFAR-10, from float", "MNIST nets, from float"]
    rows = []
    for name, (plain, dqa, *notations) in _SETS:
        cells = [_pair(_behind(digits, "quantizer", (plain, dqa)))]
        cells += [_pair(_behind(rows_, "quantizers", notations)) for rows_ in (scratch, tuned)]
        cells.append(_pair(_behind_own(mnist, notations)))
        rows.append([name, *cells])
    return markdown(head, rows)


def elsewhere(validation: List[Dict[str, Any]]) -> str:
    """What lambda does to attention and accuracy in the demo's net."""
    chosen = [
        e
        for e in validation
        if e["method"] == "DQA" and e["rate"] == "late" and e["hard"] and e["hard"] > 0.6
    ]
    rows = []
    sets = list(dict.fromkeys(e["quantizer"] for e in chosen))
    for e in sorted(chosen, key=lambda e: (sets.index(e["quantizer"]), e["strength"])):
        layers = 6 * len(e["seeds"])
        accuracy = f"{e['mean']:.1f} ± {e['sd']:.1f}"
        rows.append(
            [
                e["quantizer"],
                f"{e['strength']:g}",
                f"{e['layers_off_target']} of {layers}",
                accuracy,
            ]
        )
    return markdown(["quantizers", "lambda", "attention elsewhere", "accuracy %"], rows)


def sizes(digits: List[Dict[str, Any]], mnist: List[Any], onnx: Sequence[Any]) -> str:
    """Whole files with 2-bit min-max and with 1-bit weights against float."""
    float_demo = _row(digits, "Full precision", "quantizer", "-")
    rows = [
        [
            "the demo's net, .nnp",
            f"{float_demo['file_bytes']:,}",
            *(
                _bytes(_row(digits, "Plain", "quantizer", name), float_demo["file_bytes"])
                for name in ("min-max 2", "BWN")
            ),
        ]
    ]
    for net in dict.fromkeys(e["net"] for e in mnist):
        of = [e for e in mnist if e["net"] == net]
        whole = of[0]["parameter_bytes"]
        cells = [_bytes(_row(of, "plain", "quantizers", q), whole) for q in ("minmax:2", "bwn")]
        rows.append([f"`{net}`, .nnp", f"{whole:,}", *cells])
    by = {e["quantizer"]: e["bytes"] for e in onnx}
    cells = [_of(by[name], by["float"]) for name in ("MinMax 2", "BWN")]
    rows.append(["ResNet-18, .onnx", f"{by['float']:,}", *cells])
    return markdown(["net", "float bytes", "2 bits, min-max", "1 bit"], rows)


def _behind(rows: Iterable[Any], key: str, names: Sequence[str]) -> List[Optional[float]]:
    """Points behind the float row: plain, DQA; None where a row is missing."""
    rows = list(rows)
    (top,) = (e["mean"] for e in rows if e["method"] == "Full precision")
    found = [_row(rows, method, key, name) for method, name in zip(("Plain", "DQA"), names)]
    return [None if e is None else top - e["mean"] for e in found]


def _behind_own(rows: Sequence[Any], names: Sequence[str]) -> List[Optional[float]]:
    """Likewise, each net behind its own float file; the mean over nets."""
    behind: List[Optional[float]] = []
    for method, name in zip(("plain", "DQA"), names):
        of = [e for e in rows if e["method"] == method and e["quantizers"] == name]
        lost_by = [e["float"] - np.mean(e["accuracies"]) for e in of]
        behind.append(float(np.mean(lost_by)) if lost_by else None)
    return behind


def _row(rows: Iterable[Any], method: str, key: str, name: str) -> Any:
    found = [e for e in rows if e["method"] == method and e[key] == name]
    return found[0] if found else None


def _pair(values: Sequence[Optional[float]]) -> str:
    cells = ["-" if value is None else f"{value:.1f}" for value in values]
    return " / ".join(cells) if any(cell != "-" for cell in cells) else "-"


def _bytes(row: Any, whole: int) -> str:
    return _of(row["file_bytes"], whole)


def _of(count: int, whole: int) -> str:
    return f"{count:,} (1 / {whole / count:.1f})"
