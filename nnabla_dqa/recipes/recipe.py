"""A recipe: everything that training an NNP needs besides the file, checked when it is made."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, Dict, Mapping, Optional, Tuple

from nnabla_dqa._util.files import PathLike
from nnabla_dqa.recipes.checks import (
    RecipeError,
    check_mapping,
    check_number,
    check_one_of,
    check_text,
    check_whole,
)
from nnabla_dqa.recipes.settings import LR_SCHEDULES, Settings
from nnabla_dqa.recipes.yaml_files import read_plain

__all__ = ["LOSSES", "LR_SCHEDULES", "DataRecipe", "Recipe", "RecipeError"]

LOSSES = (
    "file",
    "softmax_cross_entropy",
    "sigmoid_cross_entropy",
    "squared_error",
    "huber",
    "distillation",
)


@dataclasses.dataclass(frozen=True)
class DataRecipe:
    """Where the samples come from.

    Args:
        train: File or folder; see :func:`nnabla_dqa.data.open_data`.
        validation: The same for validation; default: the validation part of
            ``train`` if it is a folder that has one, else nothing.
        scale: What uint8 pixels are multiplied by; default 1/255, as Neural
            Network Console does. 1 for networks that take 0 to 255.
        image_shape: (C, H, W) to which images of class folders are brought.
        inputs: Which column feeds which input of the network, where the file
            and the order (inputs: x, label: y) do not tell.
        target: The column that a named loss and the score compare with;
            default: ``y``, or the only one that feeds no input.
        limit: Use only the first so many training samples.

    Raises:
        RecipeError: Names the key and what is allowed.
    """

    train: str
    validation: Optional[str] = None
    scale: Optional[float] = None
    image_shape: Optional[Tuple[int, ...]] = None
    inputs: Optional[Dict[str, str]] = None
    target: Optional[str] = None
    limit: Optional[int] = None

    def __post_init__(self) -> None:
        set_ = object.__setattr__
        for name in ("train", "validation"):
            if isinstance(getattr(self, name), Path):
                set_(self, name, str(getattr(self, name)))
        if not isinstance(self.train, str):
            raise RecipeError(f"key 'data.train' must be text; got {self.train!r}")
        for name in ("validation", "target"):
            check_text(f"data.{name}", getattr(self, name))
        if self.scale is not None:
            set_(self, "scale", check_number("data.scale", self.scale, above=0))
        if self.limit is not None:
            set_(self, "limit", check_whole("data.limit", self.limit, 1))
        shape = self.image_shape
        if shape is not None:
            if not isinstance(shape, (list, tuple)) or len(shape) != 3:
                raise RecipeError(f"key 'data.image_shape' must be [C, H, W]; got {shape!r}")
            sizes = tuple(check_whole("data.image_shape", size, 1) for size in shape)
            set_(self, "image_shape", sizes)
        inputs = self.inputs
        if inputs is not None and not (
            isinstance(inputs, Mapping) and all(isinstance(v, str) for v in inputs.values())
        ):
            raise RecipeError(f"key 'data.inputs' must be {{input: column}}; got {inputs!r}")


@dataclasses.dataclass(frozen=True)
class Recipe(Settings):
    """How to train an NNP: the keys of :class:`Settings`, and these.

    Args:
        data: A file or folder, or a mapping with the fields of :class:`DataRecipe`.
        loss: One of :data:`LOSSES`, or None: the file's own training network
            and loss if it has one, else the key is needed. ``distillation``
            needs no labels.
        output: The output the loss is taken on; default: the first of the executor.
        network: The network to train; default: the file's training network for
            the file's loss, else the one its executor runs.
        teacher: For ``distillation``: the float NNP; default: the float
            weights of the file that is trained.
        distillation_temperature: Softens the teacher's class probabilities.
        update_normalization: Samples from which running statistics of batch
            normalization are computed anew at the end; 0 leaves them.

    Raises:
        RecipeError: Names the key and what is allowed.
    """

    data: DataRecipe
    loss: Optional[str] = None
    output: Optional[str] = None
    network: Optional[str] = None
    teacher: Optional[str] = None
    distillation_temperature: float = 2.0
    update_normalization: int = 0

    def __post_init__(self) -> None:
        set_ = object.__setattr__
        if isinstance(self.data, (str, Path)):
            set_(self, "data", DataRecipe(str(self.data)))
        elif isinstance(self.data, Mapping):
            keys = [field.name for field in dataclasses.fields(DataRecipe)]
            check_mapping("key 'data'", self.data, keys, required="train")
            set_(self, "data", DataRecipe(**self.data))
        elif not isinstance(self.data, DataRecipe):
            raise RecipeError(f"key 'data' must be a path or a mapping; got {self.data!r}")
        super().__post_init__()
        count = check_whole("update_normalization", self.update_normalization, 0)
        set_(self, "update_normalization", count)
        name = "distillation_temperature"
        set_(self, name, check_number(name, self.distillation_temperature, above=0))
        for name in ("loss", "output", "network", "teacher"):
            check_text(name, getattr(self, name))
        if self.loss is not None:
            check_one_of("loss", self.loss, LOSSES)

    @classmethod
    def from_yaml(cls, path: PathLike, data: Optional[str] = None) -> Recipe:
        """Read a recipe; paths in it are relative to its folder.

        ``data`` takes the place of the recipe's training and validation data.

        Raises:
            RecipeError: Not YAML, an unknown key, or a value that is not allowed.
            OSError: The file cannot be read.
        """
        path = Path(path)
        content = read_plain(path)
        if data is not None and isinstance(content, dict):
            own = content.get("data")
            options = dict(own) if isinstance(own, Mapping) else {}
            options.pop("validation", None)
            content["data"] = {**options, "train": str(Path(data).absolute())}
        try:
            recipe = cls.from_mapping(content)
        except RecipeError as error:
            raise RecipeError(f"{path}: {error}") from None
        return recipe.relative_to(path.parent)

    def relative_to(self, folder: Path) -> Recipe:
        """The recipe with its paths, if relative, taken from ``folder``."""

        def place(path: Optional[str]) -> Optional[str]:
            return None if path is None else str((folder / Path(path).expanduser()).resolve())

        train = str(place(self.data.train))
        data = dataclasses.replace(self.data, train=train, validation=place(self.data.validation))
        return dataclasses.replace(self, data=data, teacher=place(self.teacher))

    def to_json(self) -> Dict[str, Any]:
        """The recipe as JSON values; :meth:`from_mapping` reads them."""
        values = super().to_json()
        values["data"] = {k: v for k, v in values["data"].items() if v is not None}
        if self.data.image_shape is not None:
            values["data"]["image_shape"] = list(self.data.image_shape)
        return values
