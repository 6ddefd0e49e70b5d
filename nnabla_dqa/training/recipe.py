"""A recipe: everything that training an NNP needs besides the file, checked when it is made."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any, Dict, Mapping, Optional, Tuple

import nnabla.solvers as S

from nnabla_dqa.files import PathLike, read_yaml
from nnabla_dqa.messages import one_line
from nnabla_dqa.training.values import (
    RecipeError,
    check_mapping,
    check_number,
    check_one_of,
    check_text,
    check_whole,
    with_numbers,
)

__all__ = ["LOSSES", "LR_SCHEDULES", "DataRecipe", "Recipe", "RecipeError"]

LOSSES = (
    "file",
    "softmax_cross_entropy",
    "sigmoid_cross_entropy",
    "squared_error",
    "huber",
    "distillation",
)
_RATES = ("lr", "alpha", "eta")
"""What NNabla's solvers call the learning rate."""
_NO_SOLVERS = ("OrderedDict", "Solver", "SolverState")
LR_SCHEDULES = ("late_cosine", "cosine", "step", "constant")


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
class Recipe:
    """How to train.

    Args:
        data: A file or folder, or a mapping with the fields of :class:`DataRecipe`.
        epochs: Passes over the training data.
        batch_size: Samples an update.
        solver: Name of an NNabla solver, or a mapping with ``type`` and its arguments.
        learning_rate: Of the solver.
        lr_schedule: ``late_cosine``: constant for the first half, then cosine
            to zero (what small nets need: the weights become binary late);
            ``cosine``: to zero from the start; ``step``: a tenth after each
            third (the paper's); ``constant``.
        weight_decay: L2 on all that is trained (biases and normalization too) but attention.
        temperature: ``{start: 100, end: 0.03}`` of attention (DQA eq. 5).
        hard: The last share of the updates, with the lowest bit width alone.
        lambda_: The penalty on high bit widths (DQA eq. 6, key ``lambda``),
            divided by the number of weights; ``None`` (key left out): 0.02
            times the number of weights, the same pull on each layer whatever
            the size of the network.
        attention_lr: Learning rate of attention relative to that of the weights.
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
        seed: Of data order, dropout and augmentation.

    Raises:
        RecipeError: Names the key and what is allowed.
    """

    data: DataRecipe
    epochs: int = 3
    batch_size: int = 64
    solver: Dict[str, Any] = dataclasses.field(default_factory=lambda: {"type": "Adam"})
    learning_rate: float = 1e-3
    lr_schedule: str = "late_cosine"
    weight_decay: float = 0.0
    temperature: Dict[str, float] = dataclasses.field(default_factory=dict)
    hard: float = 0.5
    lambda_: Optional[float] = None
    attention_lr: float = 1.0
    loss: Optional[str] = None
    output: Optional[str] = None
    network: Optional[str] = None
    teacher: Optional[str] = None
    distillation_temperature: float = 2.0
    update_normalization: int = 0
    seed: int = 0

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
        if isinstance(self.solver, str):
            set_(self, "solver", {"type": self.solver})
        for name in ("epochs", "batch_size"):
            set_(self, name, check_whole(name, getattr(self, name), 1))
        for name in ("update_normalization", "seed"):
            set_(self, name, check_whole(name, getattr(self, name), 0))
        if self.seed >= 2**32:
            allowed = "a whole number from 0 to 2^32 - 1"
            raise RecipeError(f"key 'seed' must be {allowed}; got {self.seed}")
        for name in ("learning_rate", "distillation_temperature"):
            set_(self, name, check_number(name, getattr(self, name), above=0))
        for name in ("weight_decay", "attention_lr", "hard"):
            set_(self, name, check_number(name, getattr(self, name)))
        if self.lambda_ is not None:
            set_(self, "lambda_", check_number("lambda", self.lambda_))
        if not self.hard < 1:
            raise RecipeError(f"key 'hard' must be a share from 0 to below 1; got {self.hard!r}")
        for name in ("loss", "output", "network", "teacher"):
            check_text(name, getattr(self, name))
        check_one_of("lr_schedule", self.lr_schedule, LR_SCHEDULES)
        if self.loss is not None:
            check_one_of("loss", self.loss, LOSSES)
        self._check_solver()
        self._check_temperature()

    @classmethod
    def from_yaml(cls, path: PathLike, data: Optional[str] = None) -> Recipe:
        """Read a recipe; paths in it are relative to its folder.

        ``data`` takes the place of the recipe's training and validation data.

        Raises:
            RecipeError: Not YAML, an unknown key, or a value that is not allowed.
            OSError: The file cannot be read.
        """
        path = Path(path)
        try:
            content = read_yaml(path)
        except ValueError as error:
            raise RecipeError(str(error)) from None
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

    @classmethod
    def from_mapping(cls, content: Any) -> Recipe:
        """A recipe from a mapping of its keys; ``lambda`` stands for ``lambda_``."""
        keys = [field.name.rstrip("_") for field in dataclasses.fields(cls)]
        check_mapping("a recipe", content, keys, required="data")
        content = with_numbers(content)
        values = {"lambda_" if key == "lambda" else key: value for key, value in content.items()}
        return cls(**values)

    def relative_to(self, folder: Path) -> Recipe:
        """The recipe with its paths, if relative, taken from ``folder``."""

        def place(path: Optional[str]) -> Optional[str]:
            return None if path is None else str((folder / Path(path).expanduser()).resolve())

        train = str(place(self.data.train))
        data = dataclasses.replace(self.data, train=train, validation=place(self.data.validation))
        return dataclasses.replace(self, data=data, teacher=place(self.teacher))

    def to_json(self) -> Dict[str, Any]:
        """The recipe as JSON values; :meth:`from_mapping` reads them."""
        values = dataclasses.asdict(self)
        values["lambda"] = values.pop("lambda_")
        values["data"] = {k: v for k, v in values["data"].items() if v is not None}
        if self.data.image_shape is not None:
            values["data"]["image_shape"] = list(self.data.image_shape)
        return {key: value for key, value in values.items() if value is not None}

    def learning_rate_at(self, progress: float) -> float:
        """The learning rate when this share of the updates is done."""
        if self.lr_schedule == "constant":
            return self.learning_rate
        if self.lr_schedule == "step":
            return self.learning_rate * float(0.1 ** math.floor(progress * 3))
        start = 0.5 if self.lr_schedule == "late_cosine" else 0.0
        falling = max(0.0, (progress - start) / (1 - start))
        return self.learning_rate * (1 + math.cos(math.pi * falling)) / 2

    def make_solver(self) -> Any:
        """The NNabla solver of the recipe."""
        arguments = {key: value for key, value in self.solver.items() if key != "type"}
        kind = getattr(S, self.solver["type"])
        info = kind(**arguments).info
        rate = next(name for name in _RATES if name in info)
        if rate in arguments:
            raise ValueError(f"{rate} is the learning rate; write it as key 'learning_rate'")
        return kind(**{rate: self.learning_rate, **arguments})

    def _check_solver(self) -> None:
        if not isinstance(self.solver, Mapping) or "type" not in self.solver:
            raise RecipeError(
                f"key 'solver' must be a name such as Adam or {{type: Momentum, momentum: 0.9}}; "
                f"got {self.solver!r}"
            )
        kinds = [name for name in dir(S) if name[0].isupper() and name not in _NO_SOLVERS]
        check_one_of("solver", self.solver["type"], tuple(kinds))
        try:
            self.make_solver()
        except (TypeError, ValueError, RuntimeError) as error:
            raise RecipeError(f"key 'solver': {one_line(error)}") from None

    def _check_temperature(self) -> None:
        check_mapping("key 'temperature'", self.temperature, ["start", "end"])
        for key, value in self.temperature.items():
            check_number(f"temperature.{key}", value, above=0)
        schedule = {"start": 100.0, "end": 0.03, **self.temperature}
        if not schedule["start"] > schedule["end"]:
            raise RecipeError(
                f"key 'temperature': it cools, start={schedule['start']:g} must be above "
                f"end={schedule['end']:g}"
            )
