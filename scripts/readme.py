"""Copies the figures of results/ into README.md and other pages, between their markers.

python scripts/readme.py            # what `make readme` runs
python scripts/readme.py --check    # what `make lint` runs: fails where a page shows other figures
"""

from __future__ import annotations

import argparse
import ast
import json
import re
import sys
from pathlib import Path
from typing import Any, Dict, Iterator, List, Optional, Sequence, Tuple

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "examples" / "nnp")]

from run import format_lengths  # noqa: E402
from run import format_results as format_nnp  # noqa: E402
from runner import paired  # noqa: E402

from benchmarks import export_tables, question_tables  # noqa: E402
from benchmarks.bench import tables  # noqa: E402
from benchmarks.bench.tables import markdown  # noqa: E402
from benchmarks.peers import as_table  # noqa: E402
from scripts.command_page import commands  # noqa: E402


def results(entries: List[Dict[str, Any]], full: bool) -> str:
    head = ["method", "quantizers", "bits / weight", "hard phase", "lambda"]
    head += ["learning rate"] if full else []
    head += ["accuracy %", "attention elsewhere"] + ([] if full else ["file bytes"])
    rows = []
    for e in entries:
        runs = len(e["seeds"])
        cells = [e["method"], e["quantizer"], str(e["bits"])]
        cells.append("-" if e["hard"] is None else f"{100 * e['hard']:.0f} %")
        cells.append("-" if e["strength"] is None else f"{e['strength']:g}")
        cells += [e["rate"]] if full else []
        cells.append(f"{e['mean']:.1f} ± {e['sd']:.1f}")
        # Six layers, and what enters five of them.
        mixtures = 11 if "+" in e["quantizer"] else 6
        off = f"{e['layers_off_target']} of {mixtures * runs}"
        cells.append("-" if e["hard"] is None else off)
        cells += [] if full else [f"{e['file_bytes']:,}"]
        rows.append(cells)
    return markdown(head, rows)


def short_results(entries: List[Dict[str, Any]]) -> str:
    """The demo's rows for a first look: float, plain training and DQA as it is recommended."""
    rows = []
    for e in entries:
        shown = e["method"] in ("Full precision", "Plain", "DQA")
        if not shown or e["quantizer"].startswith("TWN"):
            continue
        accuracy = f"{e['mean']:.1f} ± {e['sd']:.1f}"
        rows.append([e["method"], e["quantizer"], str(e["bits"]), accuracy, f"{e['file_bytes']:,}"])
    return markdown(["method", "quantizers", "bits / weight", "accuracy %", "file bytes"], rows)


def modules() -> str:
    """Every module of the package and the first line of its docstring, by folder."""
    lines: List[str] = []
    for folder in ("", *ROOMS):
        paths = sorted((ROOT / "nnabla_dqa" / folder).glob("*.py"))
        paths = [path for path in paths if path.stem not in ("__init__", "__main__")]
        if lines:
            lines.append("")
        about = [] if not folder else [first_line(ROOT / "nnabla_dqa" / folder / "__init__.py")]
        lines.append(f"**`{folder or 'nnabla_dqa'}/`** {' '.join(about)}".rstrip())
        lines.append("")
        lines += [f"- `{path.name}`: {first_line(path)}" for path in paths]
    return "\n".join(lines)


def first_line(path: Path) -> str:
    docstring = ast.get_docstring(ast.parse(path.read_text("utf-8"))) or ""
    return docstring.splitlines()[0].rstrip(".") if docstring else ""


ROOMS = (
    *("_util", "schedules", "quantization", "quantization/activations", "quantization/qn"),
    *("quantization/neighbours", "mixing", "backends", "backends/cuda", "layers"),
    *("budget", "solver"),
    *("nnp_format", "export", "export/onnx", "export/onnx/functions", "export/packed"),
    *("graph", "onednn", "nnp"),
    *("data", "data/cifar", "data/nnabla_csv", "data/photos", "distributed", "models"),
    *("recipes", "training", "training/tasks"),
    *("reporting", "reporting/page", "commands"),
)


def caption(meta: Dict[str, Any], entries: List[Dict[str, Any]]) -> str:
    versions = ", ".join(f"{k} {v}" for k, v in meta["versions"].items())
    return (
        f"`{meta['command']}`: {len(entries[0]['seeds'])} seeds, mean ± sd over them, "
        f"{meta['measured_on']}, {meta['epochs']} epochs; {meta['seconds']} s on "
        f"{meta['machine']}; {versions}."
    )


def sizes(entries: List[Dict[str, Any]], meta: Dict[str, Any]) -> str:
    float_bytes = entries[0]["file_bytes"]
    rows = []
    seen = set()
    for e in entries:
        key = e["quantizer"].split("/")[0].split()[0] + str(e["bits"])
        if e["method"] in ("Full precision", "Plain") and key not in seen:
            seen.add(key)
            per = 8 * e["file_bytes"] / meta["parameters"]
            name = "float" if e["bits"] == 32 else e["quantizer"]
            rows.append(
                [
                    name,
                    f"{e['file_bytes']:,}",
                    f"1 / {float_bytes / e['file_bytes']:.1f}",
                    f"{per:.1f}",
                ]
            )
    return markdown(
        ["weights of the demo's net", "file bytes", "of float", "bits / parameter"], rows
    )


def narrow(content: Dict[str, Any]) -> str:
    """The narrow nets on CIFAR-10."""
    head = ["method", "quantizers", "bits / weight", "accuracy %", "single seeds"]
    head += ["attention elsewhere", "file bytes"]
    rows = []
    for e in content["rows"]:
        mixed = e["method"] in ("DQA", "Binary-Relax")
        # What enters each layer but the first has attention of its own.
        mixtures = 2 * e["layers"] - 1 if e.get("activations") else e["layers"]
        layers = mixtures * len(e["off_target"])
        rows.append(
            [
                e["method"],
                (" + ".join(f"`{e[k]}`" for k in ("quantizers", "activations") if e.get(k)) or "-")
                + "".join(f", `{r['layers']}` {r['quantizers']}" for r in e.get("rules", [])),
                f"{e['bits']:.3g}",
                f"{e['mean']:.2f} ± {e['sd']:.2f}",
                " ".join(f"{value:.2f}" for value in e["accuracies"]),
                f"{sum(e['off_target'])} of {layers}" if mixed else "-",
                f"{e['file_bytes']:,}",
            ]
        )
    meta = content["meta"]
    versions = ", ".join(f"{k} {v}" for k, v in meta["versions"].items())
    tail = (
        f"`{meta['command']}`: {len(content['rows'][0]['accuracies'])} seeds, mean ± sample sd, "
        f"{meta['measured_on']}, {content['rows'][0]['epochs']} epochs; {meta['core_minutes']:g} "
        f"core-minutes in all on {meta['machine']}; {versions}."
    )
    return f"{markdown(head, rows)}\n\n{tail}"


def shortened(content: Dict[str, Any]) -> str:
    """Runs of published recipes that had fewer epochs: what results_table.py --json prints."""
    rows = []
    for e in content["rows"]:
        paper = e["paper"]
        rows.append(
            [
                e["method"],
                f"`{e['quantizers']}`" if e["quantizers"] else "-",
                f"{e['epochs']} of {paper['epochs']:g}",
                ", ".join(map(str, e["seeds"])),
                f"{e['accuracy']:.2f}",
                f"{paper['accuracy']:g}",
                str(e["recipe"]["batch_size"]),
            ]
        )
    head = ["method", "quantizers", "epochs", "seeds", "accuracy %", "published %", "batch size"]
    return markdown(head, rows)


def budgets(content: Dict[str, Any]) -> str:
    """Bits by budget against uniform bits."""
    head = ["net", "bits", "quantizers", "accuracy %", "single seeds", "packed bytes"]
    head += ["bits of the layers"]
    rows = [
        [
            e["net"],
            e["method"],
            f"`{e['quantizers']}`",
            f"{e['mean']:.2f}" + ("" if e["sd"] is None else f" ± {e['sd']:.2f}"),
            " ".join(f"{value:.2f}" for value in e["accuracies"]),
            f"{e['packed_bytes'][0]:,}" + (f" of {e['budget']:,}" if e["budget"] else ""),
            " ".join(map(str, e["bits"][0])),
        ]
        for e in content["rows"]
    ]
    versions = ", ".join(f"{k} {v}" for k, v in content["versions"].items())
    epochs = {e["net"]: e["epochs"] for e in content["rows"]}
    seeds = len(content["rows"][0]["accuracies"])
    return (
        f"{markdown(head, rows)}\n\n`{content['command']}`: "
        f"{seeds} seeds, mean ± sample sd, {content['measured_on']}; "
        f"epochs: {', '.join(f'{n} {net}' for net, n in epochs.items())}; {content['machine']}; "
        f"layers {content['layers']}; {versions}."
    )


def compiled(content: Dict[str, Any]) -> str:
    """The compiled kernels beside numba: calls, starts, installing."""
    rows = []
    for e in content["speed"]:
        size = "x".join(str(n) for n in e["shape"])
        threads = f"{e['threads']}, {e['layer']}" if e["layer"] else str(e["threads"])
        cells = [spread(e["ms"][side], "median", "least", "largest") for side in SIDES]
        rows.append([size, e["what"], threads, *cells])
    calls = markdown(["weight", "ms", "threads", "compiled kernels", "numba"], rows)
    rows = []
    for e in content["start"]:
        rows.append([e["what"], spread(e, "median_ms", "least_ms", "largest_ms")])
    begun = markdown(["from import to the first result", "ms"], rows)
    ours, theirs = (content["install"][side] for side in SIDES)
    rows = [
        ["to download", kilobytes(ours["source_bytes"]), kilobytes(theirs["download_bytes"])],
        ["installed", kilobytes(ours["installed_bytes"]), kilobytes(theirs["installed_bytes"])],
        ["time to compile", f"{ours['compile_seconds']:g} s, once", "see the starts"],
        ["needed to install", "a C++17 compiler", "a wheel for this Python and NumPy"],
    ]
    effort = markdown(["installing", "compiled kernels", "numba and llvmlite"], rows)
    meta = content["meta"]
    versions = ", ".join(f"{k} {v}" for k, v in meta["versions"].items())
    tail = (
        f"`{meta['command']}`: medians (least - largest) of {meta['runs']} calls and "
        f"{meta['starts']} starts; {meta['machine']}, {meta['kernels']}; load average "
        f"{meta['load']:g} from other programs; {versions}."
    )
    return "\n\n".join([calls, begun, effort, tail])


def variants(content: Dict[str, Any]) -> str:
    """Accuracies of variants, a column a recipe, with their gain over the first one."""
    names = list(dict.fromkeys(row["row"] for row in content["rows"] if "gain" in row))
    labels = list(dict.fromkeys(row["variant"] for row in content["rows"] if "gain" in row))
    found = {(row["variant"], row["row"]): row for row in content["rows"]}
    rows = []
    for label in labels:
        cells = [label]
        for name in names:
            row, gain = found[label, name], found[label, name]["gain"]
            cells.append(f"{row['mean']:.2f} ± {row['sd']:.2f}")
            first = label == labels[0]
            cells.append("" if first else f"{gain['mean']:+.2f} ± {gain['sd']:.2f}")
        rows.append(cells)
    head = ["", *(cell for name in names for cell in (f"`{name}`", "gain"))]
    meta, seeds = content["meta"], len(found[labels[0], names[0]]["accuracies"])
    tail = (
        f"`{meta['command']}`: accuracy in % on {meta['measured_on']}, {seeds} seeds, mean ± "
        f"sample sd; the gain is that over the first line, seed by seed. {meta['machine']}."
    )
    others = [f"{r['variant']} {r['mean']:.2f}" for r in content["rows"] if "gain" not in r]
    if others:
        tail += f" Teachers: {', '.join(others)}."
    return f"{markdown(head, rows)}\n\n{tail}"


def fine_tuned(content: Dict[str, Any]) -> str:
    """What the mixture gains over plain training, for each net and set of quantizers."""
    rows = []
    for row in content["rows"]:
        plain = row["accuracies"]["plain"]
        accuracy = f"{np.mean(plain):.2f} ± {np.std(plain, ddof=1):.2f}"
        gain = paired(row["accuracies"]["mixture"], plain)
        rows.append([row["net"], f"`{row['row']}`", str(len(plain)), accuracy, gain])
    meta, scores = content["meta"], [row["accuracies"] for row in content["rows"]]
    mean = np.mean([np.mean(own["mixture"]) - np.mean(own["plain"]) for own in scores])
    tail = (
        f"`{meta['command']}`: accuracy in % on {meta['measured_on']}, mean ± sample sd, and what "
        f"DQA has more, seed by seed, mean ± standard error; {mean:+.2f} in the mean of the rows. "
        f"{meta['machine']}."
    )
    table = markdown(["net", "quantizers", "seeds", "plain", "DQA, to plain"], rows)
    return f"{table}\n\n{tail}"


def compared(rows: Sequence[Dict[str, Any]], bases: Sequence[Dict[str, Any]]) -> str:
    """Rows beside others, seed by seed."""
    found = [
        f"`{row['quantizers']}` ({row['method']}) to `{base['quantizers']}` ({base['method']}) "
        f"{paired(row['accuracies'], base['accuracies'])}"
        for row in rows
        for base in bases
    ]
    return f"Seed by seed, mean ± standard error: {'; '.join(found)}."


SIDES = ("kernels", "numba")


def spread(values: Dict[str, Any], *keys: str) -> str:
    median, least, largest = (short(values[key]) for key in keys)
    return f"{median} ({least} - {largest})"


def short(value: float) -> str:
    """Two digits, or all before the point."""
    return f"{value:.0f}" if value >= 10 else f"{value:.2g}"


def kilobytes(count: Optional[int]) -> str:
    return "-" if count is None else f"{count / 1000:,.0f} kB"


def replaced(text: str, page: str, name: str, table: str) -> str:
    """``text`` of a page with ``table`` between the markers of that name."""
    pattern = rf"(<!-- {name}:begin -->\n).*?(<!-- {name}:end -->)"
    new, count = re.subn(pattern, lambda m: f"{m[1]}{table}\n{m[2]}", text, flags=re.S)
    if count != 1:
        raise SystemExit(f"{page}: the markers of {name!r} occur {count} times, not once")
    return new


def load(name: str) -> Any:
    return json.loads((ROOT / "results" / name).read_text("utf-8"))


def all_tables() -> Iterator[Tuple[str, str, str]]:
    """Page, name of the markers and text of every table."""
    entries, meta = load("digits.json"), load("digits.meta.json")
    yield "README.md", "digits", f"{short_results(entries)}\n\n{caption(meta, entries)}"
    yield "docs/digits.md", "digits", f"{results(entries, False)}\n\n{caption(meta, entries)}"
    yield "docs/digits.md", "size", sizes(entries, meta)
    both, meta = load("digits_w2a2.json"), load("digits_w2a2.meta.json")
    yield "docs/digits.md", "activations", f"{results(both, False)}\n\n{caption(meta, both)}"
    sweep, meta = load("digits_validation.json"), load("digits_validation.meta.json")
    yield "docs/digits.md", "validation", f"{results(sweep, True)}\n\n{caption(meta, sweep)}"
    yield "docs/architecture.md", "modules", modules()
    yield "docs/commands.md", "commands", commands()
    yield "docs/cifar.md", "narrow", narrow(load("cifar_table_1.json"))
    yield "docs/cifar.md", "narrow_12", narrow(load("cifar_table_1_12_epochs.json"))
    yield "docs/cifar.md", "resnet20", narrow(load("cifar_resnet20.json"))
    bwn, mnist = load("cifar_resnet20_bwn.json"), load("budget_mnist.json")
    *others, dqa = bwn["rows"]
    yield "docs/cifar.md", "resnet20_bwn", f"{narrow(bwn)}\n\n{compared([dqa], others)}"
    yield "docs/cifar.md", "narrow_w2a2", narrow(load("cifar_narrow_w2a2.json"))
    yield "docs/cifar.md", "grids", narrow(load("cifar_grids.json"))
    yield "docs/cifar.md", "budget", budgets(load("budget.json"))
    uniform, *chosen = mnist["rows"]
    yield "docs/cifar.md", "budget_mnist", f"{budgets(mnist)}\n\n{compared(chosen, [uniform])}"
    yield "docs/cifar.md", "teacher", variants(load("cifar_teacher_validation.json"))
    yield "docs/method.md", "order", variants(load("cifar_order_validation.json"))
    yield "docs/method.md", "fine_tuning", variants(load("cifar_fine_tuning_validation.json"))
    tuned = load("fine_tuning_validation.json")
    yield "docs/method.md", "fine_tuning_more", fine_tuned(tuned)
    yield "docs/method.md", "hard_end", variants(load("cifar_hard_end_validation.json"))
    yield "docs/compiling.md", "compiled", compiled(load("compiled.json"))
    yield "docs/export.md", "onnx", export_tables.onnx_files(load("onnx.json"))
    yield "docs/export.md", "accuracy", export_tables.onnx_accuracy(load("onnx_accuracy.json"))
    yield "docs/export.md", "nnb", export_tables.nnb(load("nnb.json"))
    yield "docs/export.md", "packed", export_tables.nnp_packed(load("nnp_packed.json"))
    for name, make in (
        ("neighbours_cifar", narrow),
        ("neighbours_activations", narrow),
        ("neighbours", format_nnp),
        ("qn_recipes", shortened),
        ("parq_recipes", shortened),
    ):
        yield "docs/neighbours.md", name, make(load(f"{name}.json"))
    yield from _questions()
    published = format_nnp(load("nnp.json"))
    yield "examples/nnp/README.md", "results", published
    lengths = format_lengths([load("nnp.json"), load("nnp_6_epochs.json")])
    yield "examples/nnp/README.md", "lengths", lengths
    yield "examples/nnp/README.md", "activations", format_nnp(load("nnp_w2a2.json"))
    peers_file = ROOT / "results" / "peers.json"
    known = as_table(load("peers.json")) if peers_file.exists() else "Unmeasured."
    yield "docs/performance.md", "peers", known
    measured = [load(path.name) for path in sorted((ROOT / "results").glob("bench-*.json"))]
    for name in tables.TABLES:
        yield "docs/performance.md", name, tables.page_part(name, measured)


def _questions() -> Iterator[Tuple[str, str, str]]:
    digits, nnp = load("digits.json"), load("nnp.json")["rows"]
    cifar, tuned = (load(name)["rows"] for name in ("cifar_table_1.json", "neighbours_cifar.json"))
    page = "docs/questions.md"
    yield page, "lost", question_tables.lost(digits, cifar, tuned, nnp)
    yield page, "elsewhere", question_tables.elsewhere(load("digits_validation.json"))
    yield page, "sizes", question_tables.sizes(digits, nnp, load("onnx.json")["files"])


def main(argv: Optional[List[str]] = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="change nothing; 1 if a page differs")
    check = parser.parse_args(argv).check
    stale = 0
    for page, name, table in all_tables():
        path = ROOT / page
        old = path.read_text("utf-8")
        new = replaced(old, page, name, table)
        if new != old and check:
            print(f"{page}: table {name!r} is not that of results/; run make readme")
            stale += 1
        elif new != old:
            path.write_text(new, "utf-8")
    return int(stale > 0)


if __name__ == "__main__":
    sys.exit(main())
