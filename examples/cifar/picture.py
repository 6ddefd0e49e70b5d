"""Accuracy by method and quantizer: means, spread and every seed.

python examples/cifar/picture.py results/cifar_table_1.json table_1.png
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any, Dict, List

COLOURS = ("#D55E00", "#0072B2", "#009E73", "#CC79A7")
"""Of Okabe and Ito's, which differ for every kind of colour vision."""
MARKERS = "sod^"
NAMES = {"minmax": "min-max", "sawb": "SAWB", "bwn": "BWN", "twn": "TWN"}


def draw(rows: List[Dict[str, Any]], title: str, path: Path) -> None:
    """Draw the rows that ``narrow.py`` has written into a PNG."""
    from matplotlib.figure import Figure

    low = [row for row in rows if row["row"] != "float"]
    groups = list(dict.fromkeys(row["row"].partition("-")[0] for row in low))
    methods = list(dict.fromkeys(row["method"] for row in low))
    figure = Figure(figsize=(8, 4.2), layout="constrained")
    axes = figure.subplots()
    for row in rows:
        if row["row"] == "float":
            axes.axhline(row["mean"], color="#555555", linestyle="--", linewidth=1)
            axes.annotate(
                f"full precision {row['mean']:.1f}",
                (1, row["mean"]),
                (0, 3),
                xycoords=("axes fraction", "data"),
                textcoords="offset points",
                ha="right",
            )
    for k, method in enumerate(methods):
        own = [row for row in low if row["method"] == method]
        places = [
            groups.index(row["row"].partition("-")[0]) + 0.24 * (k - (len(methods) - 1) / 2)
            for row in own
        ]
        colour, marker = COLOURS[k % len(COLOURS)], MARKERS[k % len(MARKERS)]
        axes.errorbar(
            places,
            [row["mean"] for row in own],
            [row["sd"] or 0.0 for row in own],
            fmt=marker,
            color=colour,
            capsize=4,
            label=method,
        )
        for x, row in zip(places, own):
            seeds = row["accuracies"]
            axes.plot([x + 0.07] * len(seeds), seeds, ".", color=colour, markersize=4)
            top = max(row["mean"] + (row["sd"] or 0.0), *seeds)
            axes.annotate(
                f"{row['mean']:.1f}",
                (x, top),
                (0, 5),
                textcoords="offset points",
                ha="center",
                fontsize=8,
            )
    bits = {row["row"].partition("-")[0]: row["bits"] for row in low}
    labels = [f"{NAMES.get(name, name)}, {bits[name]:.3g} bit" for name in groups]
    axes.set_xticks(
        range(len(groups)), [f"{t}{'' if t.endswith(' 1 bit') else 's'}" for t in labels]
    )
    axes.set_xlim(-0.6, len(groups) - 0.4)
    axes.set_ylabel("accuracy on test images, %" if "test" in title else "accuracy, %")
    axes.set_title(title, fontsize=10)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", linewidth=0.5, color="#dddddd")
    axes.set_axisbelow(True)
    axes.legend(loc="best", frameon=False, ncols=len(methods))
    figure.savefig(path, dpi=150)


def main() -> None:
    source, target = map(Path, sys.argv[1:3])
    content = json.loads(source.read_text("utf-8"))
    rows = content["rows"]
    seeds, epochs = len(rows[0]["accuracies"]), rows[0]["epochs"]
    measured = content["meta"]["measured_on"]
    title = f"{measured}, {epochs} epochs, {seeds} seeds: mean, sample sd and every seed"
    draw(rows, title, target)


if __name__ == "__main__":
    main()
