"""The recipe of an experiment: a model of this package, images, and what quantizes it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Dict, Optional

from nnabla_dqa._util.files import PathLike
from nnabla_dqa._util.messages import one_line
from nnabla_dqa.layers.scopes import make_mixture
from nnabla_dqa.mixing import BinaryRelax, Mixture
from nnabla_dqa.quantization.notation import parse_quantizers
from nnabla_dqa.recipes.checks import (
    RecipeError,
    check_mapping,
    check_number,
    check_one_of,
    check_text,
)
from nnabla_dqa.recipes.parts import ImageRecipe, ModelRecipe, part_of, take_values
from nnabla_dqa.recipes.settings import Settings
from nnabla_dqa.recipes.yaml_files import merged, read_recipe, spelled_out

MIXINGS = ("attention", "binary_relax")
_PAPER_KEYS = ("table", "accuracy", "top5", "epochs", "seeds")


@dataclasses.dataclass(frozen=True)
class Experiment(Settings):
    """What is trained, on what, and how: the keys of :class:`Settings`, and these.

    The defaults of solver, learning rate, its steps, batch size and lambda are
    those of the DQA paper's CIFAR experiments (arXiv 2103.13322, section 4.1;
    momentum and weight decay as in the first author's published code for the
    same recipe).

    Args:
        data: A path, or a mapping with the fields of :class:`ImageRecipe`.
        model: A name, or a mapping with the fields of :class:`ModelRecipe`.
        quantizers: Such as ``minmax:2,4,8`` or ``sawb:2``
            (:func:`~nnabla_dqa.quantization.notation.parse_quantizers`); None: a float net.
        mixing: ``attention`` (DQA) or ``binary_relax``; one quantizer needs none.
        sync_normalization: Batch statistics over all processes rather than
            each one's own part of the mini-batch; needs GPUs and NCCL.
        paper: What is printed for this row: ``{table, accuracy, top5, epochs, seeds}``.

    Raises:
        RecipeError: Names the key and what is allowed.
    """

    data: ImageRecipe
    epochs: int = 300
    batch_size: int = 128
    solver: Dict[str, Any] = dataclasses.field(
        default_factory=lambda: {"type": "Momentum", "momentum": 0.9}
    )
    learning_rate: float = 0.1
    lr_schedule: str = "step"
    weight_decay: float = 5e-4
    hard: float = 0.1
    lambda_: Optional[float] = 5.0
    model: ModelRecipe = dataclasses.field(default_factory=lambda: ModelRecipe("resnet18_32"))
    quantizers: Optional[str] = None
    mixing: str = "attention"
    sync_normalization: bool = False
    paper: Dict[str, float] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        take_values(
            self,
            data=part_of(ImageRecipe, "data", self.data, "source"),
            model=part_of(ModelRecipe, "model", self.model, "name"),
        )
        super().__post_init__()
        if self.lambda_ is None:
            raise RecipeError("key 'lambda' must be a number >= 0; got None")
        check_one_of("mixing", self.mixing, MIXINGS)
        check_mapping("key 'paper'", self.paper, _PAPER_KEYS)
        for key, value in self.paper.items():
            check_number(f"paper.{key}", value)
        if not isinstance(self.sync_normalization, bool):
            raise RecipeError(
                f"key 'sync_normalization' must be true or false; got {self.sync_normalization!r}"
            )
        check_text("quantizers", self.quantizers)
        try:
            self.mixture()
        except (ValueError, AttributeError, TypeError) as error:
            raise RecipeError(f"key 'quantizers': {one_line(error)}") from None

    def mixture(self) -> Optional[Mixture]:
        """What the layers mix; None for a float net."""
        if self.quantizers is None:
            return None
        quantizers, per_channel = parse_quantizers(self.quantizers)
        if per_channel:
            raise ValueError(
                f"{self.quantizers!r}: a model has one range a layer; leave out @channel"
            )
        relaxed = self.mixing == "binary_relax" and len(quantizers) > 1
        return make_mixture(*quantizers, mixing=BinaryRelax() if relaxed else None)

    @property
    def method(self) -> str:
        """``"Full precision"``, ``"Plain"``, ``"Binary-Relax"`` or ``"DQA"``."""
        mixture = self.mixture()
        if mixture is None:
            return "Full precision"
        if len(mixture.quantizers) == 1:
            return "Plain"
        return "Binary-Relax" if self.mixing == "binary_relax" else "DQA"

    @classmethod
    def from_yaml(cls, path: PathLike, changes: Optional[Mapping[str, Any]] = None) -> Experiment:
        """Read a recipe.

        Key ``base`` names a recipe, relative to this one, whose keys hold
        where this one says nothing; mappings are merged key by key. A relative
        ``data.source`` is taken from the folder one works in.

        Args:
            path: The file.
            changes: Keys that take the place of the file's, nested as they are there.

        Raises:
            RecipeError: Not YAML, an unknown key, or a value that is not allowed.
            OSError: The file cannot be read.
        """
        content = merged(read_recipe(path), spelled_out(dict(changes or {})))
        try:
            return cls.from_mapping(content)
        except RecipeError as error:
            raise RecipeError(f"{path}: {error}") from None

    def to_json(self) -> Dict[str, Any]:
        """The recipe as JSON values; :meth:`from_mapping` reads them."""
        values = super().to_json()
        values["data"] = {k: v for k, v in values["data"].items() if v is not None}
        for key in ("mean", "std"):
            values["data"][key] = list(values["data"][key])
        return values

    def resolved(self) -> Experiment:
        """The recipe as it is meant here: without ``auto``, and with the whole path of the data."""
        data = self.data.resolved()
        data = dataclasses.replace(data, source=str(Path(data.source).expanduser().absolute()))
        return dataclasses.replace(self, data=data)

    def decisive(self) -> Dict[str, Any]:
        """:meth:`to_json` without what changes no number; folders are cut to their names."""
        values = self.to_json()
        del values["data"]["workers"], values["paper"]
        values["data"]["source"] = Path(self.data.source).name
        return values
