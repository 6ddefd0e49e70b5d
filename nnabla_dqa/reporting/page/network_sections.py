"""The sections of a page about a network: bits and bytes, weights on their levels, activations."""

from __future__ import annotations

from typing import List, Tuple

from nnabla_dqa.export.metadata import DEPLOYED, PACKED
from nnabla_dqa.nnp.file import CONVERTED, FLOAT
from nnabla_dqa.nnp.summary import FileSummary
from nnabla_dqa.reporting.page.html import (
    Markup,
    element,
    facts,
    folded,
    grid,
    join,
    paragraphs,
    section,
    table,
)
from nnabla_dqa.reporting.page.layer_pictures import (
    activation_ranges,
    byte_table,
    bytes_by_layer,
    weights_picture,
)
from nnabla_dqa.reporting.page.network_view import NetworkView

Section = Tuple[str, str, Markup]
_FEW_LAYERS = 12
"""Up to so many layers the picture of each is open."""
_KINDS = {
    FLOAT: "A float file: its weights are not quantized. nnabla-dqa convert gives them mixtures.",
    CONVERTED: "A converted file: its weights go through mixtures. Bits, levels and ranges are "
    "those of each target quantizer, as deploying would make them now.",
    DEPLOYED: "A deployed file: its weights lie on their levels. Float weights are not in it; the "
    "report of the run that made it shows both.",
    PACKED: "A packed file: the network unpacks its weights from codes. The deployed file that it "
    "was made of shows them.",
}


def file_sections(view: NetworkView, prefix: str = "") -> List[Section]:
    """What a page says of an NNP."""
    assert view.summary is not None
    about = _section(f"{prefix}file", "File", _about(view.summary))
    return [about, *network_sections(view, prefix)]


def network_sections(view: NetworkView, prefix: str = "", brief: bool = False) -> List[Section]:
    """Bits and bytes, weights unless ``brief``, and activations if any are quantized."""
    made = [_section(f"{prefix}bytes", "Bits and bytes", *_bytes(view))]
    if not brief:
        made.append(_section(f"{prefix}weights", "Weights on their levels", *_weights(view)))
    if view.activations:
        made.append(
            _section(f"{prefix}activations", "Activations", activation_ranges(view.activations))
        )
    return made


def _about(summary: FileSummary) -> Markup:
    runs = ", ".join(summary.runs) or "none named"
    pairs = [
        ("Kind", summary.kind),
        ("On disk", f"{summary.file_bytes:,} bytes"),
        ("Parameters as float32", f"{summary.float_bytes:,} bytes"),
        ("Weights at their bits", f"{summary.packed_bytes:,} bytes with what stays float"),
        ("Networks", ", ".join(summary.networks)),
        ("Run", runs),
    ]
    members = [(name, f"{size:,}") for name, size in summary.members.items()]
    attention = [
        (row.layer, " ".join(row.quantizers), " ".join(f"{a:.3f}" for a in row.attention))
        for row in summary.layers
        if len(row.attention) > 1
    ]
    head = ("layer", "quantizers" if summary.kind == CONVERTED else "deployed", "attention")
    parts = [element("p", _KINDS[summary.kind]), facts(pairs)]
    if attention:
        parts.append(table("Attention in the file", head, attention))
    skipped = [element("li", f"skipped: {entry}") for entry in summary.skipped]
    if skipped:
        parts.append(element("ul", *skipped))
    parts.append(folded("What the file holds", table("Members", ("member", "bytes"), members)))
    return join(parts)


def _bytes(view: NetworkView) -> List[Markup]:
    summary = view.summary
    if summary is None:
        return [element("p", "There is no network file yet, so nothing is known of its bytes.")]
    if not summary.layers:
        return [element("p", "No layer of it has weights that could be quantized.")]
    text = (
        f"All parameters as float32: {summary.float_bytes:,} bytes. Weights packed at their bits, "
        f"all else as float32: {summary.packed_bytes:,} bytes. The file on disk, a zip with the "
        f"network's definition: {summary.file_bytes:,} bytes."
    )
    return [
        element("p", text),
        folded("All layers", byte_table(summary), open_=len(summary.layers) <= _FEW_LAYERS),
        folded(
            "As a picture", bytes_by_layer(summary), open_=len(summary.layers) <= 2 * _FEW_LAYERS
        ),
        *(
            [
                element(
                    "ul",
                    *(element("li", row.entering) for row in summary.layers if row.activations),
                )
            ]
        ),
    ]


def _weights(view: NetworkView) -> List[Markup]:
    pictures = [weights_picture(weights) for weights in view.weights]
    if not pictures:
        return [paragraphs(view.notes or ["Nothing is known of its weights."])]
    quantized = [w for w in view.weights if w.after is not None and not w.after.quantizer.is_float]
    before = any(w.before is not None for w in quantized)
    text = "Float weights of each layer."
    if quantized:
        text = "The share of the weights on each level."
    if before:
        text = (
            "Above: the float weights that were trained, with the levels as dotted lines. Below: "
            "the share of the weights on each level of what is deployed."
        )
    label = f"Each of {len(pictures)} layers"
    return [
        paragraphs([text, *view.notes]),
        folded(label, grid(pictures, small=True), open_=len(pictures) <= _FEW_LAYERS),
    ]


def _section(anchor: str, name: str, *content: Markup) -> Section:
    return anchor, name, section(anchor, name, *content)
