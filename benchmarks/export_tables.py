"""Tables of docs/export.md, made of results/onnx*.json, nnb.json and nnp_packed.json."""

from __future__ import annotations

from typing import Any, Dict

from benchmarks.bench.tables import markdown


def onnx_files(content: Dict[str, Any]) -> str:
    """ONNX files of a ResNet-18: bytes, loading, memory and time beside the float file."""
    head = [
        "weights and activations",
        "file",
        "arithmetic minimum",
        "loading",
        "memory",
        "one image",
    ]
    rows = []
    for e in content["files"]:
        ratio = f"{e['run_ms']['median']:.1f} ms ({e['run_to_float']['median']:.2f})"
        loading, memory = f"{e['load_ms']['median']:.0f} ms", f"{e['load_mib']:.0f} MiB"
        rows.append([e["quantizer"], f"{e['bytes']:,}", f"{e['least']:,}", loading, memory, ratio])
    versions = ", ".join(f"{k} {v}" for k, v in content["versions"].items())
    tail = (
        f"`{content['command']}`: {content['model']}, medians of {e['run_ms']['runs']} runs on one "
        f"thread (in brackets: to the float file, run by run) and {e['load_ms']['runs']} starts; "
        f"{content['machine']}, load average {content['load']:g}; {versions}."
    )
    return f"{markdown(head, rows)}\n\n{tail}"


def onnx_accuracy(content: Dict[str, Any]) -> str:
    """Nets with quantized activations in ONNX Runtime and in NNabla."""
    head = ["trained on, with", "arithmetic", "file", "NNabla", "ONNX Runtime", "same class"]
    rows = []
    for e in content["rows"]:
        accuracies = [f"{100 * e[key]:.2f} %" for key in ("nnp_accuracy", "accuracy")]
        same = f"{round(e['same_class'] * e['samples']):,} of {e['samples']:,}"
        arithmetic = e["arithmetic"]
        if arithmetic == "qdq":
            arithmetic += f", {e['pairs']} pairs"
        rows.append([e["quantizers"], arithmetic, f"{e['bytes']:,}", *accuracies, same])
    versions = ", ".join(f"{k} {v}" for k, v in content["versions"].items())
    epochs = "1 epoch" if content["epochs"] == 1 else f"{content['epochs']} epochs"
    tail = f"`{content['command']}`: {content['net']} and a ResNet-8, {epochs}; {versions}."
    return f"{markdown(head, rows)}\n\n{tail}"


def nnb(content: Dict[str, Any]) -> str:
    """A 1-bit LeNet in NNabla's C runtime."""
    rows = [
        ["weights", f"{content['weights']:,}"],
        ["bytes of them in float32", f"{content['weight_bytes_float']:,}"],
        ["bytes of them in the .nnb", f"{content['weight_bytes']:,}"],
        ["the .nnb, the .nnp", f"{content['file_bytes']:,}, {content['nnp_bytes']:,}"],
        ["accuracy in the C runtime", f"{100 * content['accuracy']:.2f} %"],
        ["accuracy in NNabla", f"{100 * content['nnp_accuracy']:.2f} %"],
        ["same class", f"{100 * content['same_class']:.2f} % of {content['images']:,} images"],
        ["largest difference", f"{content['difference']:.1e} of the largest output"],
        ["one image", f"{content['ms_an_image']:.1f} ms"],
    ]
    versions = ", ".join(f"{k} {v}" for k, v in content["versions"].items())
    tail = f"`{content['command']}`: {content['net']}; {content['machine']}; {versions}."
    return f"{markdown(['1-bit LeNet', ''], rows)}\n\n{tail}"


def nnp_packed(content: Dict[str, Any]) -> str:
    """NNP files with packed weights beside the deployed ones."""
    head = ["weights", "log2(levels)", "entropy of the codes", "bits a weight: packed, deflated"]
    head += ["deployed file", "packed file", "loading", "one image"]
    rows = []
    for e in content["files"]:
        both = (e["deployed"], e["packed"])
        sizes = [f"{side['bytes']:,} ({side['bits']:.2f} bits)" for side in both]
        times = [
            " → ".join(f"{side[key]['median']:.0f}" for side in both) + " ms"
            for key in ("load_ms", "run_ms")
        ]
        bits = [f"{e[key]:.2f}" for key in ("width", "entropy", "weight_bits")]
        rows.append([e["quantizer"], *bits, *sizes, *times])
    versions = ", ".join(f"{k} {v}" for k, v in content["versions"].items())
    tail = (
        f"`{content['command']}`: {content['model']}, {e['weights']:,} weights, in brackets the "
        f"whole file by these; medians of {e['packed']['run_ms']['runs']}, deployed → packed; "
        f"{content['machine']}, load average {content['load']:g}; {versions}."
    )
    return f"{markdown(head, rows)}\n\n{tail}"
