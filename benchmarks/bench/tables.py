"""The results as tables for a page."""

from __future__ import annotations

from typing import Any, Callable, Dict, List, Sequence

Content = Dict[str, Any]
"""What is in ``results/bench-<machine>.json``."""

UNMEASURED = "unmeasured"

METHODS = {
    "float": "float",
    "own": "NNabla's `PF.min_max_quantized_*`, 2 bits",
    "plain": "plain `MinMax(2)`, fused",
    "portable": "DQA `minmax:2,4,8`, portable",
    "fused": "DQA `minmax:2,4,8`, fused",
    "w+a": "DQA `minmax:2,4,8` and activations `emaminmax:2,4,8`, fused",
}
PHASES = {"start": "start", "late": "late (T = 0.03)", "hard": "hard phase"}


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def spread(figures: Dict[str, float], form: str = "{:,.4g}") -> str:
    """``median (low - high)``."""
    median, low, high = (form.format(figures[key]) for key in ("median", "low", "high"))
    return f"{median} ({low} - {high})"


def named(name: str) -> str:
    """A condition such as ``fused hard`` in words."""
    method, _, phase = name.partition(" ")
    return ", ".join([METHODS[method], *([PHASES[phase]] if phase else [])])


def caption(content: Content) -> str:
    """Where and by which command."""
    meta = content["meta"]
    versions = ", ".join(f"{name} {value}" for name, value in meta["versions"].items())
    reduced = "**Reduced run: these figures mean nothing.** " if meta["reduced"] else ""
    return (
        f"{reduced}`{meta['command']}`: {meta['cpu']}, {meta['cores']} cores, "
        f"{meta['memory_gb']:g} GB; kernels: {meta['kernels']}; load before it began "
        f"{meta['load_at_start']:g}; {meta['seconds']:.0f} s; {versions}."
    )


def claims(content: Content) -> str:
    """What had to be shown."""
    rows = []
    for claim in content["claims"]:
        value = UNMEASURED if claim["value"] is None else f"{claim['value']:.3g}"
        holds = {None: "-", True: "yes", False: "**no**"}[claim["holds"]]
        rows.append([claim["claim"], f"{claim['limit']:g}", value, holds])
    table = markdown(["claim", "at most", "measured", "holds"], rows)
    return f"{table}\n\n{caption(content)}"


def steps(content: Content) -> str:
    """Whole updates."""
    parts = []
    for net in content["sections"]["steps"]:
        rows = [
            [
                named(name),
                str(figures["runs"]),
                spread(figures, "{:,.0f}"),
                spread(net["to_float"][name], "{:.3f}"),
            ]
            for name, figures in net["ms"].items()
        ]
        head = [f"{net['net']} ({net['weights']:,} weights)", "updates", "ms", "to float"]
        parts.append(markdown(head, rows))
    return "\n\n".join(parts)


def layers(content: Content) -> str:
    """Whole updates with the layers on oneDNN."""
    section = content["sections"]["layers"]
    if isinstance(section, str):
        return f"Unmeasured: {section}."
    tables = []
    for entry in section:
        rows = []
        for turns in entry["by_threads"]:
            beside = ", beside a busy process" if turns["busy_process"] else ""
            where = f"{turns['threads']}{beside}"
            for name, figures in turns["ms"].items():
                title = "float, NNabla" if name == "NNabla float" else on_onednn(name)
                ratios = spread(turns["to_float"][name], "{:.3f}")
                rows.append([where, title, str(figures["runs"]), spread(figures), ratios])
        head = ["threads", entry["net"], "updates", "ms", "to float on oneDNN"]
        tables.append(markdown(head, rows))
    return "\n\n".join([*tables, section[0]["onednn"] + "."])


def on_onednn(name: str) -> str:
    """``fused hard`` in words."""
    return named(name).replace(", fused", "") + ", oneDNN"


def host(content: Content) -> str:
    """The host's time, of a net whose arrays are next to nothing."""
    section = content["sections"]["host"]
    head = [section["net"], "functions", "forward ms", "backward", "update", "step ms", "to float"]
    rows = []
    for name, parts in section["parts_ms"].items():
        cells = [named(name), f"{section['functions'][name]:,}"]
        cells += [f"{value:.2f}" for value in parts.values()]
        cells += [
            spread(section["ms"][name], "{:.2f}"),
            spread(section["to_float"][name], "{:.2f}"),
        ]
        rows.append(cells)
    return markdown(head, rows)


def parts(content: Content) -> str:
    """The mixtures alone, and the solver, over the float net's update."""
    head = ["net", "method", "mixture alone / float step", "solver's part", "together"]
    rows = []
    for part in content["sections"]["own_parts"]:
        both = part["mixture"] + part["solver"]
        cells = [f"{100 * share:.2f} %" for share in (part["mixture"], part["solver"], both)]
        rows.append([part["net"], in_words(part["method"]), *cells])
    return markdown(head, rows)


def in_words(name: str) -> str:
    """``fused 3 hard`` in words; ``own`` is NNabla's own quantizer."""
    if name == "own":
        return "`F.min_max_quantize`, 2 bits"
    backend, count, phase = name.split()
    return f"{backend}, K = {count}, {PHASES[phase]}"


def weight(content: Content) -> str:
    """Nanoseconds for each weight and update."""
    entries = content["sections"]["alone"]
    head = ["mixture alone, ns a weight and update", *(entry["net"] for entry in entries)]
    names = entries[0]["ns_per_weight"]
    rows = [
        [in_words(name), *(f"{entry['ns_per_weight'][name]:.3g}" for entry in entries)]
        for name in names
    ]
    return markdown(head, rows)


def memory(content: Content) -> str:
    """Peaks of processes of their own."""
    head = ["net", "method", "peak MB", "to float", "buffers of the weights' size above float"]
    rows = []
    for row in content["sections"]["memory"]:
        first, _, onednn = row["method"].partition(" on ")
        method, _, count = first.partition(" ")
        name = METHODS[method] if not count else f"{method}, K = {count}"
        name += f", on {onednn}" if onednn else ""
        net = f"{row['model']}, width {row['width']:g}, batch {row['batch']}"
        above = f"{row['buffers_above_float']:.2f}"
        rows.append([net, name, f"{row['peak_mb']:,.0f}", f"{row['to_float']:.3f}", above])
    return markdown(head, rows)


def kernels(content: Content) -> str:
    """Both passes over one weight."""
    head = ["layout", "quantizers", "how", "threads", "forward ms", "of a copy"]
    head += ["backward ms", "of a copy"]
    rows = []
    for row in content["sections"]["kernels"]:
        cells = [row["layout"], row["quantizers"], row["how"], str(row["threads"])]
        for direction in ("forward", "backward"):
            cells.append(spread(row[f"{direction}_ms"], "{:.2f}"))
            to_copy = row.get(f"{direction}_to_copy")
            moved = row.get(f"{direction}_bytes_per_weight")
            cells.append(f"{to_copy['median']:.2f} ({moved} bytes)" if to_copy else "-")
        rows.append(cells)
    return markdown(head, rows)


def files(content: Content) -> str:
    """Converting and deploying."""
    head = ["net", "parameters", "convert s", "deploy s", "float MB", "converted MB", "deployed MB"]
    keys = ("convert_s", "deploy_s", "float_mb", "converted_mb", "deployed_mb")
    rows = [
        [row["net"], f"{row['parameters']:,}", *(f"{row[key]:.3g}" for key in keys)]
        for row in content["sections"]["files"]
    ]
    return markdown(head, rows)


def imports(content: Content) -> str:
    """One line."""
    row = content["sections"]["imports"]
    return (
        f"`import nnabla` {row['nnabla_s']:g} s of processor time, then `import nnabla_dqa` "
        f"{row['nnabla_dqa_s']:g} s more ({100 * row['to_nnabla']:.0f} %); the compiled kernels "
        f"{row['kernels_ms']:g} ms when they are first used. Medians of {row['processes']} "
        f"fresh processes."
    )


def gpu(content: Content) -> str:
    """Updates on a GPU, where there was one."""
    entries = content["sections"]["gpu"]
    if isinstance(entries, str):
        return f"Unmeasured: {entries}."
    head = ["net", "type", "method", "update ms", "to float", "memory MiB"]
    rows, alone = [], []
    for entry in entries:
        kind = entry["type"] + (", channels last" if entry["channel_last"] else "")
        for row in entry["updates"]:
            time = {key: row[f"{key}_ms"] for key in ("median", "least", "largest")}
            time.update(low=time["least"], high=time["largest"])
            cells = [entry["net"], kind, row["net"], spread(time, "{:,.1f}")]
            rows.append([*cells, f"{row['to_float']:.3f}", str(row["memory_mib"])])
        for name, figures in entry["alone"]["ms"].items():
            alone.append([entry["net"], kind, in_words(name), spread(figures, "{:,.2f}")])
    device = entries[0]["device"] or "device unknown"
    tables = [markdown(head, rows), markdown(["net", "type", "mixture alone", "ms"], alone)]
    return "\n\n".join([*tables, f"On {device}."])


TABLES: Dict[str, Callable[[Content], str]] = {
    "claims": claims,
    "steps": steps,
    "own_parts": parts,
    "layers": layers,
    "host": host,
    "alone": weight,
    "memory": memory,
    "kernels": kernels,
    "files": files,
    "imports": imports,
    "gpu": gpu,
}
"""By the name of the section, which is that of the page's markers too."""


def page_part(name: str, contents: List[Content]) -> str:
    """What stands between the page's markers of this name: a table of every machine.

    Raises:
        ValueError: One is of a reduced or partial run.
    """
    contents = [c for c in contents if name == "claims" or name in c["sections"]]
    if not contents:
        return "Unmeasured: `make bench` fills this in."
    for content in contents:
        if content["meta"]["reduced"] or content["meta"]["only"]:
            raise ValueError(
                f"results of {content['meta']['name']} are of a reduced or partial run; "
                f"run `make bench` again"
            )
    if len(contents) == 1:
        return TABLES[name](contents[0])
    return "\n\n".join(f"On {c['meta']['name']}:\n\n{TABLES[name](c)}" for c in contents)
