"""What every training has: length, solver, learning rate, attention; checked when it is made."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, ClassVar, Dict, Optional, Type, TypeVar

import nnabla.solvers as S

from nnabla_dqa._util.messages import one_line
from nnabla_dqa.mixing import BinaryRelax, MixingRule
from nnabla_dqa.recipes.checks import (
    RecipeError,
    check_mapping,
    check_number,
    check_one_of,
    check_whole,
    with_numbers,
)
from nnabla_dqa.schedules import RelaxSchedule, Schedule, TemperatureSchedule

_RATES = ("lr", "alpha", "eta")
"""What NNabla's solvers call the learning rate."""
_NO_SOLVERS = ("OrderedDict", "Solver", "SolverState")
LR_SCHEDULES = ("late_cosine", "cosine", "step", "constant")

Self = TypeVar("Self", bound="Settings")


@dataclasses.dataclass(frozen=True)
class Settings:
    """The keys that every recipe has.

    Args:
        data: What is trained on; the recipe says in which form.
        epochs: Passes over the training data.
        batch_size: Samples an update, of all processes together.
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
        seed: Of data order, dropout and augmentation.

    Raises:
        RecipeError: Names the key and what is allowed.
    """

    data: Any
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
    seed: int = 0

    REQUIRED: ClassVar[str] = "data"

    def __post_init__(self) -> None:
        set_ = object.__setattr__
        if isinstance(self.solver, str):
            set_(self, "solver", {"type": self.solver})
        for name in ("epochs", "batch_size"):
            set_(self, name, check_whole(name, getattr(self, name), 1))
        set_(self, "seed", check_whole("seed", self.seed, 0))
        if self.seed >= 2**32:
            allowed = "a whole number from 0 to 2^32 - 1"
            raise RecipeError(f"key 'seed' must be {allowed}; got {self.seed}")
        set_(self, "learning_rate", check_number("learning_rate", self.learning_rate, above=0))
        for name in ("weight_decay", "attention_lr", "hard"):
            set_(self, name, check_number(name, getattr(self, name)))
        if self.lambda_ is not None:
            set_(self, "lambda_", check_number("lambda", self.lambda_))
        if not self.hard < 1:
            raise RecipeError(f"key 'hard' must be a share from 0 to below 1; got {self.hard!r}")
        check_one_of("lr_schedule", self.lr_schedule, LR_SCHEDULES)
        self._check_solver()
        self._check_temperature()

    @classmethod
    def from_mapping(cls: Type[Self], content: Any) -> Self:
        """A recipe from a mapping of its keys; ``lambda`` stands for ``lambda_``.

        Raises:
            RecipeError: Names the key and what is allowed.
        """
        keys = [field.name.rstrip("_") for field in dataclasses.fields(cls)]
        check_mapping("a recipe", content, keys, required=cls.REQUIRED)
        content = with_numbers(content)
        values = {"lambda_" if key == "lambda" else key: value for key, value in content.items()}
        return cls(**values)

    def to_json(self) -> Dict[str, Any]:
        """The recipe as JSON values; :meth:`from_mapping` reads them."""
        values = dataclasses.asdict(self)
        values["lambda"] = values.pop("lambda_")
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

    def make_schedule(self, mixing: MixingRule, steps_per_epoch: int) -> Schedule:
        """What drives the state of layers that ``mixing`` mixes."""
        steps = self.epochs * steps_per_epoch
        if isinstance(mixing, BinaryRelax):
            return RelaxSchedule.reaching(steps, steps_per_epoch, hard_fraction=self.hard)
        return TemperatureSchedule(steps, hard_fraction=self.hard, **self.temperature)

    def _check_solver(self) -> None:
        if not isinstance(self.solver, Mapping) or "type" not in self.solver:
            raise RecipeError(
                f"key 'solver' must be a name such as Adam or {{type: Momentum, momentum: 0.9}}; "
                f"got {self.solver!r}"
            )
        kinds = [name for name in dir(S) if name[0].isupper() and name not in _NO_SOLVERS]
        check_one_of("solver", self.solver["type"], tuple(kinds))
        for key, value in self.solver.items():
            if isinstance(value, float) and not math.isfinite(value):
                raise RecipeError(f"key 'solver': {key} must be a finite number; got {value!r}")
        try:
            self.make_solver()
        except (TypeError, ValueError, RuntimeError) as error:
            raise RecipeError(f"key 'solver': {dict(self.solver)}: {one_line(error)}") from None

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
