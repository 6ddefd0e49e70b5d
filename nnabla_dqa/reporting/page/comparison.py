"""Several runs beside each other: one row for each recipe, with the spread over its seeds."""

from __future__ import annotations

import dataclasses
import json
import statistics
from typing import Any, Dict, List, Mapping, Optional, Sequence, Tuple

from nnabla_dqa.reporting.page.html import Markup, element, figure, table
from nnabla_dqa.reporting.page.run_record import FINISHED, RunRecord
from nnabla_dqa.reporting.page.run_sections import score_text, state
from nnabla_dqa.reporting.page.svg import (
    DASHES,
    INK,
    SERIES,
    WIDE,
    drawing,
    embedded,
    legend,
    shortened,
    whole_ticks,
)
from nnabla_dqa.training.run_folder import RunError


@dataclasses.dataclass(frozen=True)
class Group:
    """Runs that differ in nothing but the seed.

    Attributes:
        name: What tells it from the other groups.
        runs: All of them, by seed.
    """

    name: str
    runs: Tuple[RunRecord, ...]

    @property
    def metric(self) -> str:
        """What its scores are."""
        return self.runs[0].metric

    @property
    def scores(self) -> List[float]:
        """Of the finished runs; accuracies in percent."""
        factor = 100.0 if self.metric == "accuracy" else 1.0
        return [factor * run.score for run in self.runs if run.score is not None]

    @property
    def mean(self) -> Optional[float]:
        """Over the finished runs; None without any."""
        return statistics.fmean(self.scores) if self.scores else None

    @property
    def sd(self) -> Optional[float]:
        """Sample standard deviation over the seeds; None below two finished runs."""
        return statistics.stdev(self.scores) if len(self.scores) > 1 else None


def groups_of(records: Sequence[RunRecord]) -> List[Group]:
    """The runs by recipe.

    Raises:
        RunError: Two finished runs have the same recipe and seed: that is no second sample.
    """
    found: Dict[str, List[RunRecord]] = {}
    ordered = sorted(records, key=lambda run: run.state != FINISHED)
    for record in ordered:
        key = _key(record.settings)
        if record.state != FINISHED:
            # What its samples were is not known, so it joins the first recipe that fits.
            fits = [k for k, runs in found.items() if _alike(runs[0], record)]
            key = fits[0] if fits else key
        found.setdefault(key, []).append(record)
    whole = [sorted(group, key=lambda run: run.recipe.seed) for group in found.values()]
    groups = [part for group in whole for part in _by_teacher(group)]
    for group in groups:
        _refuse_twice(group)
    names = _names([group[0] for group in groups])
    return [Group(name, tuple(group)) for name, group in zip(names, groups)]


def comparison(records: Sequence[RunRecord]) -> List[Markup]:
    """The content of the section that compares runs."""
    groups = groups_of(records)
    metrics = dict.fromkeys(group.metric for group in groups if group.scores)
    made = [
        element(
            "p",
            "One row for each recipe. Mean, sample standard deviation (sd), lowest and highest are "
            "over the seeds of its finished runs; a score is that of the deployed file.",
        ),
        _groups_table(groups),
    ]
    for metric in metrics:
        chosen = [group for group in groups if group.metric == metric and group.scores]
        made.append(element("div", _spread(chosen, metric), _curves(chosen, metric), class_="grid"))
    return [*made, _runs_table(groups)]


def _key(settings: Mapping[str, Any]) -> str:
    return json.dumps(settings, sort_keys=True, default=str)


def _alike(one: RunRecord, other: RunRecord) -> bool:
    """Whether two runs have the same settings, apart from what is known of their samples."""
    settings = [
        {k: v for k, v in run.settings.items() if not k.startswith("images")}
        for run in (one, other)
    ]
    return settings[0] == settings[1]


def _by_teacher(group: List[RunRecord]) -> List[List[RunRecord]]:
    """The runs by the content of the teacher's file, where seeds come twice.

    Else they are one recipe: the teacher of each seed may be a float net of that seed.
    """
    seeds = [run.recipe.seed for run in group if run.state == FINISHED]
    if len(set(seeds)) == len(seeds):
        return [group]
    found: Dict[str, List[RunRecord]] = {}
    for run in group:
        found.setdefault(run.teacher_checksum, []).append(run)
    return list(found.values())


def _told_apart(run: RunRecord, others: Sequence[RunRecord]) -> Dict[str, Any]:
    """Its settings, and the teacher's checksum if another one has the same settings."""
    same = [other for other in others if other.settings == run.settings]
    more = {"teacher.checksum": run.teacher_checksum} if len(same) > 1 else {}
    return {**run.settings, **more}


def _refuse_twice(group: Sequence[RunRecord]) -> None:
    """The same seed twice is no second sample; the user has to say which run counts."""
    seen: Dict[int, RunRecord] = {}
    for run in group:
        other = seen.setdefault(run.recipe.seed, run)
        if run.state == FINISHED and other is not run:
            raise RunError(
                f"{run.place.path}: has the recipe and the seed ({run.recipe.seed}) of "
                f"{other.place.path}; leave out one of them"
            )


def _names(firsts: Sequence[RunRecord]) -> List[str]:
    """Method, quantizers and network; where that is not enough, the keys that differ too."""
    settings = [_told_apart(run, firsts) for run in firsts]
    several = len({run.network for run in firsts}) > 1
    short = []
    for run in firsts:
        quantizers = [q for q in (run.recipe.quantizers, run.recipe.activations) if q is not None]
        named = [run.method, *map(_text, quantizers), *([run.network] if several else [])]
        short.append(" ".join(named))
    names = []
    for name, own in zip(short, settings):
        alike = [values for other, values in zip(short, settings) if other == name]
        differing = [k for k in own if any(values.get(k) != own[k] for values in alike)]
        more = ", ".join(f"{key}={_text(own[key])}" for key in differing)
        names.append(f"{name} ({more})" if more else name)
    return names


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, default=str)


def _groups_table(groups: Sequence[Group]) -> Markup:
    head = ("recipe", "metric", "runs", "mean", "sd", "lowest", "highest", "bits / weight", "bytes")
    rows = [
        (
            group.name,
            {"accuracy": "accuracy, %"}.get(group.metric, group.metric) or "-",
            _counted(group),
            _number(group.mean),
            _number(group.sd),
            _number(min(group.scores, default=None)),
            _number(max(group.scores, default=None)),
            _mean_of(group, "bits_per_weight", "{:.3g}"),
            _mean_of(group, "file_bytes", "{:,.0f}"),
        )
        for group in groups
    ]
    return table("Recipes, with the spread over their seeds", head, rows)


def _runs_table(groups: Sequence[Group]) -> Markup:
    head = ("run", "recipe", "seed", "state", "epochs", "score", "attention elsewhere")
    rows = []
    for group in groups:
        for run in group.runs:
            elsewhere = run.number("off_target")
            rows.append(
                (
                    run.name,
                    group.name,
                    run.recipe.seed,
                    state(run),
                    f"{len(run.epochs)} of {run.recipe.epochs}",
                    score_text(run.metric, run.score),
                    "-" if elsewhere is None else f"{elsewhere:g} layers",
                )
            )
    return table("All runs", head, rows)


def _counted(group: Group) -> str:
    finished = len(group.scores)
    count = str(finished) if finished == len(group.runs) else f"{finished} of {len(group.runs)}"
    teachers = {run.teacher_checksum for run in group.runs} - {""}
    return count if len(teachers) < 2 else f"{count}, {len(teachers)} teachers"


def _mean_of(group: Group, key: str, form: str) -> str:
    values = [value for run in group.runs if (value := run.number(key)) is not None]
    return form.format(statistics.fmean(values)) if values else "-"


def _spread(groups: Sequence[Group], metric: str) -> Markup:
    """A dot for each run, a stroke at the mean, and a bar of one sd to both sides."""
    unit = _unit(metric)
    title = f"{unit[0].upper()}{unit[1:]} by recipe"
    about = "A dot for each run, a stroke for the mean, a bar of one sd to both sides. " + " ".join(
        f"{g.name}: mean {_number(g.mean)}, sd {_number(g.sd)}, {len(g.scores)} runs."
        for g in groups
    )
    with drawing((WIDE[0], 1.0 + 0.32 * len(groups))) as drawn:
        axis = drawn.subplots()
        for row, group in enumerate(groups):
            colour = SERIES[row % len(SERIES)]
            if group.sd is not None and group.mean is not None:
                low, high = group.mean - group.sd, group.mean + group.sd
                axis.plot([low, high], [row, row], color=colour, linewidth=6, alpha=0.35)
            axis.plot([group.mean], [row], "|", color=INK, markersize=14)
            axis.plot(group.scores, [row] * len(group.scores), "o", color=colour, markersize=4)
        names = [shortened(group.name, 28) for group in groups]
        axis.set_yticks(range(len(groups)), names, fontsize=9)
        axis.set_ylim(len(groups) - 0.5, -0.5)
        axis.grid(axis="x")
        axis.grid(visible=False, axis="y")
        axis.set_xlabel(unit)
        svg = embedded(drawn, title, about)
    rows = [(g.name, ", ".join(f"{score:.4g}" for score in g.scores)) for g in groups]
    return figure(title, svg, table(title, ("recipe", "scores by seed"), rows))


def _curves(groups: Sequence[Group], metric: str) -> Markup:
    """The score of every run over its epochs."""
    unit, factor = _unit(metric), 100.0 if metric == "accuracy" else 1.0
    title = f"{unit[0].upper()}{unit[1:]} over training"
    about = (
        f"A line for each of {sum(len(g.runs) for g in groups)} runs, as deployed at each epoch."
    )
    rows = []
    with drawing() as drawn:
        axis = drawn.subplots()
        for k, group in enumerate(groups):
            for run in group.runs:
                scored = [e for e in run.epochs if e.score is not None]
                axis.plot(
                    [e.epoch for e in scored],
                    [factor * e.score for e in scored if e.score is not None],
                    color=SERIES[k % len(SERIES)],
                    linestyle=DASHES[k % len(DASHES)],
                    linewidth=1.2,
                )
                values = " ".join(f"{factor * e.score:.4g}" for e in scored if e.score is not None)
                rows.append((group.name, run.recipe.seed, values))
        axis.set_xlabel("epoch")
        axis.set_ylabel(unit)
        whole_ticks(axis)
        svg = embedded(drawn, title, about)
    numbers = table(title, ("recipe", "seed", "epoch by epoch"), rows)
    return figure(title, svg, numbers, legend=legend([group.name for group in groups]))


def _unit(metric: str) -> str:
    return "accuracy, %" if metric == "accuracy" else metric


def _number(value: Optional[float]) -> str:
    return "-" if value is None else f"{value:.4g}"
