"""The sections of a page about one run."""

from __future__ import annotations

import math
from typing import Any, List, Mapping, Optional, Sequence, Tuple

from nnabla_dqa.reporting.page import attention_pictures
from nnabla_dqa.reporting.page.html import (
    Markup,
    element,
    facts,
    folded,
    grid,
    join,
    pairs,
    paragraphs,
    section,
    table,
)
from nnabla_dqa.reporting.page.network_sections import network_sections
from nnabla_dqa.reporting.page.network_view import Mixed, NetworkView
from nnabla_dqa.reporting.page.run_record import FAILED, RunRecord, flattened
from nnabla_dqa.reporting.page.training_pictures import losses, scores

Section = Tuple[str, str, Markup]
"""Anchor, name in the list of links, and the section itself."""
_FEW_LAYERS = 12
"""Up to so many layers the picture of each is open."""


def run_sections(
    record: RunRecord, view: NetworkView, prefix: str = "", brief: bool = False
) -> List[Section]:
    """What a page says of a run.

    Args:
        record: The run.
        view: Its network.
        prefix: Of the anchors, where a page has several runs.
        brief: Without a picture of each layer.
    """
    made = [
        (f"{prefix}result", "Result", [result(record, view)]),
        (f"{prefix}training", "Loss and accuracy", training(record)),
        (f"{prefix}attention", "Attention", attention(record, view, brief)),
    ]
    sections = [(a, name, section(a, name, *content)) for a, name, content in made]
    return [
        *sections,
        *network_sections(view, prefix, brief),
        _section(f"{prefix}recipe", "Recipe", recipe(record)),
        _section(f"{prefix}starts", "Versions and machine", starts(record)),
    ]


def result(record: RunRecord, view: NetworkView) -> Markup:
    """The run in a few figures, and what the user should know."""
    told: List[Tuple[str, object]] = [
        ("State", state(record)),
        ("Method", record.method),
        ("Network", record.network),
        ("Quantizers", _quantizers(record)),
        ("Data", record.recipe.data.train.rstrip("/\\").rsplit("/", 1)[-1]),
        ("Score of the deployed file", score_text(record.metric, record.score)),
        ("Epochs", f"{len(record.epochs)} of {record.recipe.epochs}"),
        ("Seed", record.recipe.seed),
        ("Hard phase", hard_phase(record)),
    ]
    bits, elsewhere = record.number("bits_per_weight"), record.number("off_target")
    if bits is not None:
        told.append(("Bits per weight", f"{bits:.3g}"))
    if view.summary is not None:
        small, large = view.summary.file_bytes, view.summary.float_bytes
        told.append(("Deployed file", f"{small:,} bytes; parameters as float32: {large:,}"))
    if elsewhere is not None:
        told.append(("Layers whose attention ended elsewhere", f"{elsewhere:g}"))
    noted = (record.result or {}).get("messages", [])
    return join([facts(told), failure(record), messages(noted)])


def state(record: RunRecord) -> str:
    """In words."""
    return "stopped by NaN or infinity" if record.state == FAILED else record.state


def failure(record: RunRecord) -> Markup:
    """Where NaN or infinity ended the run; empty if they did not."""
    if record.failure is None:
        return Markup("")
    where = f"Epoch {record.failure.epoch}, after {record.failure.step} steps: "
    return element("p", where, record.failure.error, class_="bad")


def messages(texts: Any) -> Markup:
    """What the training told its user."""
    listed = [element("li", text) for text in texts] if isinstance(texts, list) else []
    return element("ul", *listed) if listed else Markup("")


def training(record: RunRecord) -> List[Markup]:
    """Loss and scores over the epochs."""
    if not record.epochs and record.failure is None:
        return [element("p", "No epoch has ended yet.")]
    odd = [e.epoch for e in record.epochs if not math.isfinite(e.loss)]
    found = [losses(record), scores(record)]
    notes = [f"The loss is no finite number in epoch {', '.join(map(str, odd))}."] if odd else []
    rows = [_epoch_row(epoch, record.hard_from) for epoch in record.epochs]
    head = ("epoch", "loss", "learning rate", "score", "T", "target alone", "seconds")
    return [
        paragraphs(notes),
        grid([picture for picture in found if picture is not None]),
        *([folded("All epochs", table("Epochs", head, rows))] if rows else []),
    ]


def attention(record: RunRecord, view: NetworkView, brief: bool = False) -> List[Markup]:
    """Attention of every layer over training, with the temperature."""
    rows = record.attention
    if not rows:
        return [element("p", _no_attention(record))]
    mixed = {name: view.mixed.get(name, Mixed()) for name in rows}
    targets = [(name, known.target) for name, known in mixed.items()]
    overview = [
        attention_pictures.of_target(record, targets),
        attention_pictures.temperature(record),
    ]
    found = grid([picture for picture in overview if picture is not None])
    if brief:
        return [element("p", hard_phase_sentence(record)), found]
    small = [
        attention_pictures.of_layer(record, name, known.quantizers, known.target)
        for name, known in mixed.items()
    ]
    layers = grid(small, small=True)
    many = f"Each of the {len(small)} tensors by itself"
    return [
        element("p", hard_phase_sentence(record)),
        found,
        folded(many, layers, open_=len(small) <= _FEW_LAYERS),
    ]


def hard_phase(record: RunRecord) -> str:
    """Where it began, shortly."""
    if record.hard_from is not None:
        return f"from epoch {record.hard_from:.3g} of {record.recipe.epochs} on"
    if not record.epochs:
        return "no epoch has ended"
    if not any(epoch.attention for epoch in record.epochs):
        return "nothing is mixed"
    return "none (hard_fraction 0)"


def hard_phase_sentence(record: RunRecord) -> str:
    """Where it began, and what that means."""
    first = next((epoch.epoch for epoch in record.epochs if epoch.hard), None)
    text = (
        "Attention is the coefficient of each quantizer in a layer's mixture, at the end of each "
        "epoch. "
    )
    if record.hard_from is None:
        return text + "There is no hard phase: the layers are mixed to the end."
    begin = f"The hard phase began after {record.hard_from:.3g} epochs"
    if first is None and len(record.epochs) <= record.hard_from:
        return text + begin.replace("began", "is to begin") + "; no epoch with it has ended."
    # It may begin within an epoch that has ended, and no other one has since.
    whole = (
        "No whole epoch with it has ended"
        if first is None
        else f"The first whole epoch with it was {first}"
    )
    return (
        f"{text}{begin}: from then on the target quantizer alone is used, whatever attention says. "
        f"{whole}."
    )


def recipe(record: RunRecord) -> Markup:
    """All keys and values."""
    rows = [(key, _value(value)) for key, value in flattened(record.recipe.to_json())]
    return pairs("Keys of the recipe", rows)


def starts(record: RunRecord) -> Markup:
    """Seed, versions and machine of every start."""
    if not record.starts:
        return element("p", "run.json says nothing of a start.")
    keys = dict.fromkeys(key for start in record.starts for key, _ in flattened(_told(start)))
    values = [dict(flattened(_told(start))) for start in record.starts]
    if len(values) == 1:
        return pairs("Start of the run", [(key, _value(value)) for key, value in values[0].items()])
    head = ("", *(f"start {i + 1}" for i in range(len(values))))
    rows = [(key, *(_value(start.get(key, "-")) for start in values)) for key in keys]
    return table("Starts of the run", head, rows)


def score_text(metric: str, score: Any) -> str:
    """A score with its metric."""
    if score is None:
        return "not measured"
    return f"{100 * score:.2f} %" if metric == "accuracy" else f"{metric} {score:.4g}"


def _section(anchor: str, name: str, *content: Markup) -> Section:
    return anchor, name, section(anchor, name, *content)


def _told(start: Mapping[str, Any]) -> Mapping[str, Any]:
    return {key: value for key, value in start.items() if key != "failure"}


def _quantizers(record: RunRecord) -> str:
    both = (record.recipe.quantizers, record.recipe.activations)
    names = ("weights", "activations")
    told = [f"{name}: {_value(one)}" for name, one in zip(names, both) if one is not None]
    return "; ".join(told) or "those of the file" * (record.recipe.network is not None) or "none"


def _epoch_row(epoch: Any, hard_from: Optional[float]) -> Sequence[object]:
    alone = "no" if hard_from is None or epoch.epoch <= hard_from else "in its last part"
    return (
        epoch.epoch,
        f"{epoch.loss:.4g}",
        f"{epoch.learning_rate:.3g}",
        "-" if epoch.score is None else f"{epoch.score:.4f}",
        "-" if epoch.temperature is None else f"{epoch.temperature:.4g}",
        "yes" if epoch.hard else alone,
        f"{epoch.seconds:.1f}",
    )


def _no_attention(record: RunRecord) -> str:
    if not record.epochs:
        return "No epoch has ended, so nothing is known of attention."
    if record.method in ("DQA", "Binary-Relax"):
        return (
            "The records of this run hold no attention: an earlier version trained it, or its "
            "epochs were cut out of result.json."
        )
    return f"Nothing is mixed in this run ({record.method}), so there is no attention."


def _value(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return ", ".join(_value(v) for v in value) or "(none)"
    if isinstance(value, Mapping):
        return ", ".join(f"{k}={_value(v)}" for k, v in value.items()) or "(none)"
    return "" if value is None else str(value)
