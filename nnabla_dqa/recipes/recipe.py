# ruff: noqa: RUF009
"""A recipe: what is trained, on what data and how; checked when it is made."""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Dict, Iterable, List, Optional, Union

import nnabla.solvers as S

from nnabla_dqa._util.files import PathLike
from nnabla_dqa._util.messages import one_line
from nnabla_dqa._util.renamed import renamed
from nnabla_dqa.budget.units import BudgetError, byte_size
from nnabla_dqa.layers.rules import Rule, Rules
from nnabla_dqa.layers.scopes import make_mixture
from nnabla_dqa.mixing import Attention, MixingRule, Mixture
from nnabla_dqa.quantization import Quantizer
from nnabla_dqa.quantization.notation import QuantizerSet
from nnabla_dqa.recipes.checks import (
    RecipeError,
    check_fields,
    check_mapping,
    flag,
    fractions,
    is_finite,
    key_of,
    must_be,
    number,
    numbers_by_name,
    one_of,
    option,
    part,
    share,
    text,
    whole,
    with_numbers,
)
from nnabla_dqa.recipes.parts import DataRecipe, ModelRecipe
from nnabla_dqa.recipes.presets import preset
from nnabla_dqa.recipes.yaml_files import (
    is_nnp,
    merged,
    placed,
    read_recipe,
    spelled_out,
)
from nnabla_dqa.schedules import Schedule

__all__ = ["LOSSES", "LR_SCHEDULES", "DataRecipe", "ModelRecipe", "Recipe", "RecipeError"]

ORDER_FROM = 0.6
"""The default of ``order_from``, chosen on held-out images (docs/method.md)."""
NEVER = "never"
"""``order_from`` of attention that is left alone."""
DISTILLATION = "distillation"
DISTILLATION_WEIGHT = 0.5
"""How much of the loss is the distance to a teacher, if a recipe has labels too."""
LOSSES = (
    "file",
    "softmax_cross_entropy",
    "sigmoid_cross_entropy",
    "squared_error",
    "huber",
    DISTILLATION,
)
STATISTICS_SAMPLES = 10000
"""From how many samples statistics of batch normalization are computed anew by default."""
LR_SCHEDULES = ("late_cosine", "cosine", "step", "constant")
_RATES = ("lr", "alpha", "eta")
"""What NNabla's solvers call the learning rate."""
_NO_SOLVERS = ("OrderedDict", "Solver", "SolverState")
_OF_NNP = ("output", "train_network", "data.image_shape")
_OF_MODEL = ("init", "sync_normalization", "data.mean", "data.std")
_SHARPENING = ("end", "per_epoch", "steepness")
_NETWORK = must_be("an .nnp file (a network inside it is named by 'train_network')", is_nnp, str)
_ANY = must_be("anything", lambda value: True)
_SOLVER = must_be(
    "a name such as Adam or {type: Momentum, momentum: 0.9}",
    lambda value: isinstance(value, str) or (isinstance(value, Mapping) and "type" in value),
    lambda value: {"type": value} if isinstance(value, str) else dict(value),
)
_ORDER = must_be(
    "a number >= 0 and below 1, or never",
    lambda value: value == NEVER or (is_finite(value) and 0 <= value < 1),
    lambda value: value if value == NEVER else float(value),
)
_QUANTIZATION = ("quantizers", "rules", "mixing", "activations", "keep_activations")


def _size(key: str, value: Any) -> int:
    try:
        return byte_size(value)
    except BudgetError as error:
        raise RecipeError(f"key {key!r}: {error}") from None


def _solver(key: str, value: Any) -> Any:
    value = _SOLVER(key, value)
    kinds = [name for name in dir(S) if name[0].isupper() and name not in _NO_SOLVERS]
    one_of(*kinds)(key, value["type"])
    for name, argument in value.items():
        if isinstance(argument, float) and not math.isfinite(argument):
            raise RecipeError(f"key {key!r}: {name} must be a finite number; got {argument!r}")
    try:
        _made(value, 0.1)
    except (TypeError, ValueError, RuntimeError) as error:
        raise RecipeError(f"key {key!r}: {dict(value)}: {one_line(error)}") from None
    return value


def _made(solver: Mapping[str, Any], learning_rate: float) -> Any:
    arguments = {key: value for key, value in solver.items() if key != "type"}
    kind = getattr(S, solver["type"])
    info = kind(**arguments).info
    rate = next(name for name in _RATES if name in info)
    if rate in arguments:
        raise ValueError(f"{rate} is the learning rate; write it as key 'learning_rate'")
    return kind(**{rate: learning_rate, **arguments})


@renamed(hard="hard_fraction", lambda_="strength")
@dataclasses.dataclass(frozen=True)
class Recipe:
    """What is trained, on what, and how.

    A recipe trains ``network``, an NNP, or ``model``, one of this package. The
    defaults are for fine-tuning; :data:`~nnabla_dqa.recipes.presets.PRESETS`
    has others (key ``preset`` of a YAML file or of :meth:`from_mapping`).

    Args:
        data: A path, or a mapping with the fields of :class:`DataRecipe`.
        network: The NNP to train: converted, or float if there are ``quantizers``.
        model: A name, or a mapping with the fields of :class:`ModelRecipe`.
        init: What a model's parameters are at the beginning: ``network.nnp`` or ``checkpoint`` of
            the run of another recipe with this model. What quantizers have learned is taken over
            where a layer has the same ones; what schedules drive begins anew. Default: random.
        quantizers: Such as ``minmax:2,4,8`` or ``sawb:2@channel``; default:
            those that a converted NNP has, none (a float net) for a model.
        rules: Other quantizers for some layers, as in the file of ``nnabla-dqa
            convert --rules``: ``[{layers: "conv1*", quantizers: float}]``; without
            ``quantizers`` the other layers stay float.
        mixing: ``attention`` (DQA, the default), ``binary_relax``, or ``{type: ..., ...}``.
        activations: Quantizers of what enters the layers, such as ``pact:2,4,8``; the network's
            input stays as it is. Default: none.
        keep_activations: Layers at whose input nothing is quantized: a glob or a list of them.
        epochs: Passes over the training data.
        batch_size: Samples a step, of all processes together.
        solver: Name of an NNabla solver, or a mapping with ``type`` and its arguments.
        learning_rate: Of the solver.
        lr_schedule: ``late_cosine``: constant for the first half, then cosine
            to zero (what small nets need: the weights become binary late);
            ``cosine``: to zero from the start; ``step``: a tenth after each
            third (the paper's); ``constant``.
        lr_drops: For ``step``: the fractions of the training after which it is divided by ten,
            such as ``[0.5, 0.75]``; default: after each third.
        clip_gradient: Scale the gradients of all that is trained down to this L2 norm, taken over
            all of them together, where it is larger; before weight decay. Default: never.
        weight_decay: L2 on all that is trained (biases and normalization too) but attention.
        temperature: ``{start: 100, end: 0.03}`` of attention (DQA eq. 5).
        sharpening: Of quantizers that are soft in training. ``qn``: ``{end: 275}``, their
            temperature in the last soft epoch (the default), or ``{per_epoch: 5}``, what each
            epoch adds to it. ``parq``: ``{steepness: 10}`` of the course of their slope.
        hard_fraction: The last fraction of the steps, in which every layer uses
            its target quantizer alone; 0 is the paper's schedule.
        order_from: The fraction of the updates before the hard phase from which on each layer's
            attention is brought to its target (:class:`~nnabla_dqa.TemperatureSchedule`).
            Default: 0.6; with a ``lambda``, as in the paper, ``never``.
        strength: Of the regularizer on high bit widths (DQA eq. 6, key
            ``lambda``), which is divided by the number of weights; default:
            0.02 times the number of weights, the same pull on each layer
            whatever the size of the network.
        attention_lr: Learning rate of attention relative to that of the weights.
        budget: What the deployed network may weigh, such as ``100kB`` (1,000 bytes each),
            ``100KiB`` (1,024 each), or bytes: column ``packed`` of ``nnabla-dqa summary``.
            Attention chooses the bits of each layer for it, in place of the target.
            ``lambda`` and ``order_from`` count for quantized activations alone then.
        loss: One of :data:`LOSSES`; default: the NNP's own training network
            and loss if it has one, else the key is needed; softmax cross
            entropy for a model. ``distillation`` needs no labels.
        teacher: A float network to learn from besides the labels: an NNP, such as the
            ``network.nnp`` of a float run of a model, or its ``checkpoint``; for a model also an
            ``.h5`` of its parameters. With loss ``distillation`` it is all that is learned
            from, and of an NNP by default its own float weights.
        distillation_weight: From 0 to 1, how much of the loss is the distance to the teacher; the
            rest is ``loss``. Default: 0.5.
        distillation_temperature: T, softens the class probabilities of both; the distance is
            ``T^2 KL(teacher || network)`` (Hinton et al., arXiv 1503.02531).
        output: Of an NNP, the output the loss is taken on; default: the first of the executor.
        train_network: The network inside the NNP to train; default: its
            training network for its own loss, else the one its executor runs.
        bn_statistics: When running statistics of batch normalization are computed anew from
            training samples, with the target quantizers alone: ``hard``, as the hard phase
            begins; ``deploy``, at the end; ``both``; ``off``. Default: ``deploy`` with
            ``update_normalization``, else ``off``.
        update_normalization: From how many samples; 0: 10,000, where ``bn_statistics`` asks for it.
        sync_normalization: Batch statistics of a model over all processes
            rather than each one's own part of the mini-batch.
        seed: Of initial weights, data order, dropout and augmentation.
        paper: What is printed for this row: ``{table, accuracy, top5, epochs, seeds}``.

    Raises:
        RecipeError: Names the key and what is allowed.

    Examples:
        >>> import nnabla_dqa as dqa
        >>> recipe = dqa.Recipe("mnist", network="lenet.nnp", quantizers="sawb:2,4,8", epochs=10)
        >>> recipe.data.train, recipe.batch_size, recipe.hard_fraction
        ('mnist', 64, 0.3)
    """

    data: DataRecipe = option(part(DataRecipe, "train"))
    network: Optional[str] = option(_NETWORK, None)
    model: Optional[ModelRecipe] = option(part(ModelRecipe, "name"), None)
    init: Optional[str] = option(text, None)
    quantizers: Optional[Any] = option(_ANY, None)
    rules: Optional[List[Any]] = option(_ANY, None)
    mixing: Optional[Any] = option(_ANY, None)
    activations: Optional[Any] = option(_ANY, None)
    keep_activations: Optional[Any] = option(_ANY, None)
    epochs: int = option(whole(1), 3)
    batch_size: int = option(whole(1), 64)
    solver: Dict[str, Any] = option(_solver, {"type": "Adam"})
    learning_rate: float = option(number(above=0), 1e-3)
    lr_schedule: str = option(one_of(*LR_SCHEDULES), "late_cosine")
    lr_drops: Optional[List[float]] = option(fractions, None)
    clip_gradient: Optional[float] = option(number(above=0), None)
    weight_decay: float = option(number(), 0.0)
    temperature: Dict[str, float] = option(numbers_by_name("start", "end", above=0), {})
    sharpening: Dict[str, float] = option(numbers_by_name(*_SHARPENING, above=0), {})
    hard_fraction: float = option(number(below=1), 0.3)
    order_from: Optional[Union[float, str]] = option(_ORDER, None)
    strength: Optional[float] = option(number(), None, key="lambda")
    attention_lr: float = option(number(), 1.0)
    budget: Optional[int] = option(_size, None)
    loss: Optional[str] = option(one_of(*LOSSES), None)
    teacher: Optional[str] = option(text, None)
    distillation_weight: Optional[float] = option(share, None)
    distillation_temperature: float = option(number(above=0), 2.0)
    output: Optional[str] = option(text, None)
    train_network: Optional[str] = option(text, None)
    bn_statistics: Optional[str] = option(one_of("off", "hard", "deploy", "both"), None)
    update_normalization: int = option(whole(0), 0)
    sync_normalization: bool = option(flag, False)
    seed: int = option(whole(0, 2**32 - 1), 0)
    paper: Dict[str, float] = option(
        numbers_by_name("table", "accuracy", "top5", "epochs", "seeds"), {}
    )

    def __post_init__(self) -> None:
        check_fields(self)
        schedule = {"start": 100.0, "end": 0.03, **self.temperature}
        if not schedule["start"] > schedule["end"]:
            raise RecipeError(
                f"key 'temperature': it cools, start={schedule['start']:g} must be above "
                f"end={schedule['end']:g}"
            )
        if {"end", "per_epoch"} <= set(self.sharpening):
            raise RecipeError("key 'sharpening': end or per_epoch, not both")
        if self.lr_drops is not None and self.lr_schedule != "step":
            raise RecipeError(f"key 'lr_drops' is for lr_schedule: step, not {self.lr_schedule}")
        self._check_kind()
        if self.mixing is not None and self.quantizers is None and not self.rules:
            raise RecipeError(
                "key 'mixing' needs 'quantizers'; a converted NNP has its own mixing rule (convert "
                "--mixing)"
            )
        try:
            self.mixture()
        except (ValueError, AttributeError, TypeError) as error:
            keys = [repr(key) for key in _QUANTIZATION if getattr(self, key) is not None]
            text = one_line(error).replace("the rules: ", "", 1)
            text = text if text.startswith("key ") else f"key {' and '.join(keys)}: {text}"
            raise RecipeError(text) from None

    def _check_kind(self) -> None:
        """Raise RecipeError for keys that what is trained does not have."""
        if self.network is not None and self.model is not None:
            raise RecipeError("keys 'network' and 'model': a recipe trains one of them")
        if self.model is not None and self.loss == "file":
            raise RecipeError("key 'loss': file is for an NNP; a model has no loss of its own")
        if self.model is not None and self.loss == DISTILLATION and self.teacher is None:
            raise RecipeError("key 'teacher' is missing: the float NNP that a model learns from")
        if self.loss == DISTILLATION and self.distillation_weight is not None:
            raise RecipeError(
                "key 'distillation_weight' is for a teacher beside labels; loss: distillation "
                "uses none: leave one of the two out"
            )
        for kind, other, keys in (("model", "an NNP", _OF_NNP), ("network", "a model", _OF_MODEL)):
            for key in keys:
                *above, name = key.split(".")
                place = getattr(self, above[0]) if above else self
                field = next(f for f in dataclasses.fields(place) if f.name == name)
                if getattr(self, kind) is not None and getattr(place, name) != field.default:
                    raise RecipeError(f"key {key!r} is for {other}; leave it out")

    @property
    def taught(self) -> float:
        """How much of the loss is the distance to a teacher, 0 to 1."""
        if self.loss == DISTILLATION:
            return 1.0
        if self.teacher is None:
            return 0.0
        weight = self.distillation_weight
        return DISTILLATION_WEIGHT if weight is None else weight

    def statistics_at(self, when: str) -> int:
        """From how many samples statistics are computed anew ``"hard"`` or ``"deploy"``; 0: not."""
        chosen = self.bn_statistics or ("deploy" if self.update_normalization else "off")
        count = self.update_normalization or STATISTICS_SAMPLES
        return count if chosen in (when, "both") else 0

    @property
    def quantization(self) -> Optional[Rules]:
        """The quantizers of the layers, by rules; None if the recipe names none."""
        keys = {key: getattr(self, key) for key in _QUANTIZATION}
        rules = Rules.from_mapping(
            {"quantizers": "float", **{key: v for key, v in keys.items() if v is not None}}
        )
        if self.quantizers is not None or self.rules:
            return rules
        if self.activations is not None:
            raise ValueError("activations need quantizers of the weights; name these too")
        return None

    def mixture(self) -> Optional[Mixture]:
        """What the layers that no rule names mix; None for a float net."""
        return next(iter(self._mixtures()), None)

    def _mixtures(self) -> List[Mixture]:
        """What the layers mix: those that no rule names, then those of each rule."""
        made: List[Mixture] = []
        rules = self.quantization
        if rules is None:
            return made
        sets = [(rules.quantizers, rules.mixing)]
        sets += [(rule.quantizers, rule.mixing or rules.mixing) for rule in rules.rules]
        for quantizer_set, mixing in sets:
            quantizers = quantizer_set.for_axis(0)
            made.append(make_mixture(*quantizers, mixing=mixing if len(quantizers) > 1 else None))
        return made

    @property
    def order(self) -> Optional[float]:
        """``order_from``, or its default; None: never."""
        if self.order_from is None:
            return ORDER_FROM if self.strength is None else None
        return None if self.order_from == NEVER else float(self.order_from)

    def make_schedule(
        self, mixture: Mixture, steps: int, steps_per_epoch: int
    ) -> Optional[Schedule]:
        """What drives the state of layers that mix ``mixture``."""
        rule = mixture.mixing
        cooled = "temperature" in rule.state(mixture.quantizers)
        options: Dict[str, Any] = dict(self.temperature) if cooled else {}
        # A rule with a schedule of its own is asked only for what a recipe names.
        known = type(rule).default_schedule is Attention.default_schedule
        if cooled and self.order is not None and (known or self.order_from is not None):
            options["order_from"] = self.order
        return rule.default_schedule(steps, steps_per_epoch, self.hard_fraction, **options)

    def make_sharpening(
        self, quantizer: Quantizer, steps: int, steps_per_epoch: int
    ) -> Optional[Schedule]:
        """What draws a quantizer that is soft in training to its levels; None for others."""
        own = {k: v for k, v in self.sharpening.items() if k in quantizer.schedule_options}
        return quantizer.default_schedule(steps, steps_per_epoch, self.hard_fraction, **own)

    @property
    def method(self) -> str:
        """``"Full precision"`` or the label of the mixing rule, such as ``"DQA"``."""
        return method_of(self._mixtures())

    @classmethod
    def keys(cls) -> List[str]:
        """The names of the keys."""
        return [key_of(field) for field in dataclasses.fields(cls)]

    @classmethod
    def from_mapping(cls, content: Any) -> Recipe:
        """A recipe from a mapping of its keys, and ``preset``.

        Raises:
            RecipeError: Names the key and what is allowed.
        """
        if isinstance(content, Mapping):
            content = spelled_out(content)
        check_mapping("a recipe", content, [*cls.keys(), "preset", "base"], required="data")
        content = with_numbers(content)
        if "base" in content:
            raise RecipeError("key 'base' is for a recipe in a file, which it is relative to")
        if "preset" in content:
            below = preset(content.pop("preset"))
            if content.get("network") is not None:
                below = _without(below, _OF_MODEL)
            content = merged(below, content)
        names = {key_of(field): field.name for field in dataclasses.fields(cls)}
        return cls(**{names[key]: value for key, value in content.items()})

    @classmethod
    def from_yaml(
        cls, path: PathLike, changes: Union[Mapping[str, Any], PathLike, None] = None
    ) -> Recipe:
        """Read a recipe.

        Key ``base`` names a recipe whose keys hold where this one says nothing;
        mappings are merged key by key. Paths are relative to the file that
        names them, those of ``changes`` to the folder one works in.

        Args:
            path: The file.
            changes: Keys that take the place of the file's, nested as they are
                there; or a path, in place of training and validation data.

        Raises:
            RecipeError: Not YAML, an unknown key, or a value that is not allowed.
            OSError: The file cannot be read.
        """
        if isinstance(changes, (str, os.PathLike)):
            changes = {"data": {"train": os.fspath(changes), "validation": None}}
        content = read_recipe(path)
        try:
            if isinstance(content, Mapping):
                if content.get("network") is not None:
                    # Also where a change takes its place: the key had another meaning once.
                    _NETWORK("network", content["network"])
                content = merged(content, placed(spelled_out(changes or {}), os.getcwd()))
            return cls.from_mapping(content)
        except RecipeError as error:
            raise RecipeError(f"{path}: {error}") from None

    def to_json(self) -> Dict[str, Any]:
        """The recipe as JSON values; :meth:`from_mapping` reads them."""
        values = _json(self)
        for name in ("data", "model"):
            if name in values:
                values[name] = _json(getattr(self, name))
        return values

    def decisive(self) -> Dict[str, Any]:
        """:meth:`to_json` without what changes no number, paths cut to their names.

        A file to be passed on need not show folders, and a training that is
        resumed may have been moved. The network is identified by its own content.
        """
        values = self.to_json()
        for key in ("network", "paper"):
            values.pop(key, None)
        # What counts is when attention is brought to its target, said or by default.
        values["order_from"] = NEVER if self.order is None else self.order
        del values["data"]["workers"]
        for place in (values["data"], values):
            for key in {"train", "validation", "teacher", "init"} & set(place):
                place[key] = Path(place[key]).name
        return values

    def learning_rate_at(self, progress: float) -> float:
        """The learning rate when this fraction of the steps is done."""
        if self.lr_schedule == "constant":
            return self.learning_rate
        if self.lr_schedule == "step":
            drops = math.floor(progress * 3)
            if self.lr_drops is not None:
                drops = sum(progress >= drop for drop in self.lr_drops)
            return self.learning_rate * float(0.1**drops)
        start = 0.5 if self.lr_schedule == "late_cosine" else 0.0
        falling = max(0.0, (progress - start) / (1 - start))
        return self.learning_rate * (1 + math.cos(math.pi * falling)) / 2

    def make_solver(self) -> Any:
        """The NNabla solver of the recipe."""
        return _made(self.solver, self.learning_rate)


def method_of(mixtures: Iterable[Mixture]) -> str:
    """What tables call a training whose layers mix these."""
    quantized = [m for m in mixtures if not all(q.is_float for q in m.quantizers)]
    labels = {_label(mixture) for mixture in quantized}
    return ", ".join(sorted(labels)) or "Full precision"


def _label(mixture: Mixture) -> str:
    own = "" if mixture.is_mixed else mixture.target_quantizer.label
    return own or mixture.mixing.label or type(mixture.mixing).__name__


def _without(content: Mapping[str, Any], keys: Iterable[str], above: str = "") -> Dict[str, Any]:
    """``content`` without some keys, of which those in mappings are called ``data.mean``."""
    return {
        key: _without(value, keys, f"{above}{key}.") if isinstance(value, Mapping) else value
        for key, value in content.items()
        if f"{above}{key}" not in keys
    }


def _json(instance: Any) -> Dict[str, Any]:
    values = {key_of(f): getattr(instance, f.name) for f in dataclasses.fields(instance)}
    return {key: _plain(value) for key, value in values.items() if value is not None}


def without_names(decisive: Mapping[str, Any]) -> Dict[str, Any]:
    """:meth:`Recipe.decisive` without the names of files whose content is compared itself.

    That is the training data and the teacher, which a checkpoint knows by their checksums.
    """
    values = {**decisive, "data": {**decisive["data"], "train": None}}
    if values.get("teacher") is not None:
        values["teacher"] = "a file"
    return values


def _plain(value: Any) -> Any:
    """Quantizers, mixing rules and rules as the mappings that stand for them."""
    if isinstance(value, (Quantizer, QuantizerSet, MixingRule, Rule)):
        value = value.to_json()
    if isinstance(value, (list, tuple)):
        return [_plain(entry) for entry in value]
    if isinstance(value, Mapping):
        return {key: _plain(entry) for key, entry in value.items()}
    return value
