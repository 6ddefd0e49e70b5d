"""What the figures have to show, or refute."""

from __future__ import annotations

from typing import Any, Dict, List, Optional

from benchmarks.bench.measuring import digits
from benchmarks.bench.plan import BITS

FUSED = tuple(f"fused {count}" for count in BITS)

Claim = Dict[str, Any]
"""``claim``, ``limit``, ``value`` and whether it ``holds``; the last two None if unmeasured."""


def claims(sections: Dict[str, Any]) -> List[Claim]:
    """All of them, for the first net of the plan."""
    return [
        *_time(sections),
        *_host(sections.get("host") or {}),
        *_layers(sections.get("layers") or []),
        *_memory(sections.get("memory", [])),
        *_kernels(sections.get("kernels", [])),
    ]


def _claim(text: str, limit: float, value: Optional[float]) -> Claim:
    holds = None if value is None else value <= limit
    return {"claim": text, "limit": limit, "value": value, "holds": holds}


def _time(sections: Dict[str, Any]) -> List[Claim]:
    steps = sections.get("steps") or [{"net": "first net", "to_float": {}}]
    net, to_float = steps[0]["net"], steps[0]["to_float"]
    whole = {name: figures["median"] for name, figures in to_float.items()}
    parts = {
        part["method"]: part["mixture"] + part["solver"]
        for part in sections.get("own_parts", [])
        if part["net"] == net
    }
    found = []
    for phase, limit in (("start", 1.01), ("hard", 1.01)):
        text = f"{net}: update of DQA K=3, fused, {phase}, to float's"
        part = parts.get(f"fused 3 {phase}")
        found.append(_claim(f"{text}, whole", limit, whole.get(f"fused {phase}")))
        by_part = None if part is None else digits(1 + part)
        found.append(_claim(f"{text}, by its own part", limit, by_part))
    text = f"{net}: update of DQA K=3, fused, start, to NNabla's own quantized layers'"
    found.append(_claim(f"{text}, whole", 1.0, _share(whole.get("fused start"), whole.get("own"))))
    share = _share(parts.get("fused 3 start"), parts.get("own"))
    found.append(_claim(f"{text}, the parts beside the net", 1.0, share))
    for step in steps[1:]:
        figures = step["to_float"].get("fused start")
        if step["net"].startswith("mobilenet"):
            title = f"{step['net']}: update of DQA K=3, fused, start, to float's, whole"
            found.append(_claim(title, 1.04, figures and figures["median"]))
    return found


def _host(section: Dict[str, Any]) -> List[Claim]:
    functions, to_float = section.get("functions", {}), section.get("to_float", {})
    more = functions["fused"] - functions["float"] if functions else None
    per_layer = None if more is None else digits((more - 12) / section["layers"])
    ratio = to_float["fused"]["median"] if to_float else None
    return [
        _claim(
            "functions that DQA K=3, fused, adds for each layer, after 12 for all", 3, per_layer
        ),
        _claim("host time of an update of DQA K=3, fused, to float's", 2.5, ratio),
    ]


def _layers(section: Any) -> List[Claim]:
    """Of updates with the layers on oneDNN, with all threads and nothing beside them."""
    found = []
    for entry in [] if isinstance(section, str) else section:
        turns = entry["by_threads"][0]
        to_float = {name: figures["median"] for name, figures in turns["to_float"].items()}
        title = f"{entry['net']}, {turns['threads']} threads"
        if "w+a start" in to_float:
            for phase in ("start", "hard"):
                text = f"{title}: DQA K=3 on weights and activations, {phase}, to float there"
                found.append(_claim(text, 1.35, to_float[f"w+a {phase}"]))
            continue
        mobile, large = entry["net"].startswith("mobilenet"), entry["net"].endswith("batch 64")
        found.append(
            _claim(
                f"{title}: float update on oneDNN, to NNabla's own",
                0.333 if mobile else 0.167,
                digits(1 / to_float["NNabla float"]),
            )
        )
        for phase, limit in (("start", 1.03 if large else 1.10), ("hard", 1.08)):
            text = f"{title}: DQA K=3, {phase}, on oneDNN, to float there"
            found.append(_claim(text, 1.06 if mobile else limit, to_float[f"fused {phase}"]))
    return found


def _share(value: Optional[float], other: Optional[float]) -> Optional[float]:
    return None if value is None or not other else digits(value / other)


def _memory(rows: List[Dict[str, Any]]) -> List[Claim]:
    by_batch: Dict[int, Dict[str, Dict[str, Any]]] = {}
    own_net = {row["model"] for row in rows if row["method"].startswith("w+a")}
    for row in rows:
        if row["model"] in own_net:
            continue
        by_batch.setdefault(row["batch"], {})[row["method"]] = row
    batches = sorted(by_batch)
    small = by_batch[batches[0]] if batches else {}
    large = by_batch[batches[-1]] if len(batches) > 1 else {}
    above = [row["buffers_above_float"] for row in rows if row["method"] in FUSED]
    own = small.get("own", {}).get("peak_mb")
    fused = small.get("fused 3", {}).get("peak_mb")
    onednn = [
        _more_memory(rows_of_batch, method)
        for rows_of_batch in by_batch.values()
        for method in ("float", "fused 3")
        if f"{method} on oneDNN" in rows_of_batch
    ]
    return [
        *onednn,
        *[_memory_with_activations(rows, model) for model in sorted(own_net)],
        _claim(
            "memory above float, in buffers of the weights' size, most of fused K=1..5 and batches",
            2.0,
            max(above, default=None),
        ),
        _claim(
            "peak memory of DQA K=3, fused, to float's, largest batch",
            1.10,
            large.get("fused 3", {}).get("to_float"),
        ),
        _claim(
            "peak memory of DQA K=3, fused, to NNabla's own quantized layers'",
            1.0,
            _share(fused, own),
        ),
    ]


def _more_memory(rows: Dict[str, Dict[str, Any]], method: str) -> Claim:
    """What a net needs more with its layers on oneDNN: at most its largest array once more."""
    nnabla, onednn = rows[method], rows[f"{method} on oneDNN"]
    name = "float" if method == "float" else "DQA K=3"
    text = (
        f"{nnabla['model']}, batch {nnabla['batch']}: MB that {name} needs more on oneDNN, "
        f"beside {onednn['library_mb']:.0f} for its code"
    )
    limit = digits(rows["float"]["largest_output_mb"])
    return _claim(text, limit, digits(onednn["peak_mb"] - nnabla["peak_mb"]))


def _memory_with_activations(rows: List[Dict[str, Any]], model: str) -> Claim:
    found = {row["method"]: row for row in rows if row["model"] == model}
    row = found["w+a on oneDNN"]
    text = (
        f"{model}, batch {row['batch']}: peak memory of DQA K=3 on weights and activations, "
        f"on oneDNN, to float there"
    )
    return _claim(text, 1.30, _share(row["peak_mb"], found["float on oneDNN"]["peak_mb"]))


def _kernels(rows: List[Dict[str, Any]]) -> List[Claim]:
    worst: Dict[Any, float] = {}
    for row in rows:
        if row["how"] != "fused" or row["threads"] != 1:
            continue
        key = (row["layout"], row["quantizers"].startswith("MinMax"))
        for direction in ("forward", "backward"):
            value = row[f"{direction}_to_copy"]["median"]
            worst[key] = max(worst.get(key, 0.0), value)
    found = []
    for layout in ("per tensor", "rows", "last axis"):
        for minmax, limit, text in ((True, 2.0, "min-max"), (False, 3.0, "other quantizers")):
            title = f"fused kernels, {text}, {layout}, 1 thread: slowest pass to such a copy"
            found.append(_claim(title, limit, worst.get((layout, minmax))))
    return found
