"""A recipe as something to train: its network, data, loss and solver."""

from __future__ import annotations

import contextlib
from typing import Any, Dict, Iterator, List, Mapping, Optional

import nnabla as nn
import nnabla.functions as F
import numpy as np

from nnabla_dqa._util.devices import float_context, in_float32
from nnabla_dqa.budget.state import forget_budget
from nnabla_dqa.budget.units import BudgetError
from nnabla_dqa.data import DataError
from nnabla_dqa.data.prefetch import Prefetcher
from nnabla_dqa.data.sampler import batches_of
from nnabla_dqa.distributed import Communicator, given_or_single
from nnabla_dqa.graph.bn_statistics import estimate, moving
from nnabla_dqa.graph.traverse import LiveGraph
from nnabla_dqa.layers.scopes import choosing
from nnabla_dqa.layers.tensors import INPUT
from nnabla_dqa.mixing import Mixture
from nnabla_dqa.mixing.mixture import rule_warnings
from nnabla_dqa.nnp_format.members import NNPError
from nnabla_dqa.onednn.accelerate import fast
from nnabla_dqa.quantization.graph_ops import Variable
from nnabla_dqa.recipes.recipe import Recipe, RecipeError
from nnabla_dqa.regularization import PULL, regularizer, total_weights
from nnabla_dqa.schedules import Schedule
from nnabla_dqa.solver.attached import attach
from nnabla_dqa.training.tasks.evaluation import evaluate
from nnabla_dqa.training.tasks.inputs import LabelError, fill
from nnabla_dqa.training.tasks.model import ModelNetwork
from nnabla_dqa.training.tasks.network import Network
from nnabla_dqa.training.tasks.nnp import FileNetwork
from nnabla_dqa.training.tasks.sources import check_classes, dataset_checksum, open_sources
from nnabla_dqa.training.trainable import Scores, Trainable

MANY_CLASSES = 100
"""From so many classes on, top-5 accuracy is measured too."""


class Task(Trainable):
    """What a recipe trains.

    Args:
        recipe: Names a network or a model.
        communicator: The processes that train together; each takes its part
            of every mini-batch.
        max_bytes: What the NNP, or a teacher, may unpack to.

    Raises:
        RecipeError, NNPError, DataError: What the recipe names is not there or
            does not fit; one line that names the key, file or column.
    """

    def __init__(
        self,
        recipe: Recipe,
        communicator: Optional[Communicator] = None,
        max_bytes: Optional[int] = None,
    ) -> None:
        self.recipe = recipe
        self.communicator = given_or_single(communicator)
        self.source, self.workers = recipe.data.train, recipe.data.workers
        if recipe.network is None and recipe.model is None:
            raise RecipeError("keys 'network' and 'model': name an NNP or a model to train")
        network: Network = (
            FileNetwork(recipe, max_bytes)
            if recipe.model is None
            else ModelNetwork(recipe, self.communicator, max_bytes)
        )
        self.network, self.scope = network, network.scope
        self.data, self.validation, messages = open_sources(
            recipe.data, network.image_size, recipe.seed
        )
        self._check_sizes()
        # Initial weights and dropout draw from here, augmentation and order do not.
        nn.seed(recipe.seed)
        # That of an earlier training of the file.
        forget_budget(self.scope)
        own = choosing(recipe.budget is not None)
        with nn.parameter_scope("", self.scope), nn.auto_forward(False), own:
            self.objective = network.objective(
                self.data.shapes,
                recipe.batch_size // self.communicator.size,
                len(self.validation) if self.validation is not None else 0,
            )
            messages += self._check_columns()
            with in_float32():
                self.loss = self._with_regularizer(self.objective.loss)
                self.solver = self._solver()
        self._statistics = moving(self.loss)
        messages = [*network.messages, *messages, *self._unused_keys(), *self._taught()]
        self.messages = list(dict.fromkeys(messages))
        self._checksum = dataset_checksum(self.data)

    @property
    def mixed(self) -> Dict[str, Mixture]:
        """The mixtures of more than one quantizer, by the names of their layers."""
        return {k: m for k, m in self.network.mixtures.items() if len(m.quantizers) > 1}

    @property
    def _mixes_activations(self) -> bool:
        return any(name.endswith(INPUT) for name in self.mixed)

    def _check_sizes(self) -> None:
        size, processes = self.recipe.batch_size, self.communicator.size
        if self.recipe.model is not None and self.validation is None:
            raise DataError(
                f"{self.source}: has no part for validation; key 'data.holdout', such as 0.1, "
                f"keeps some of its images for that"
            )
        if size % processes:
            raise RecipeError(
                f"key 'batch_size' must be a multiple of the number of processes, {processes}; got "
                f"{size}"
            )
        if size > len(self.data):
            raise DataError(
                f"{self.source}: has {len(self.data)} samples, fewer than batch_size={size}"
            )

    def _check_columns(self) -> List[str]:
        """What to tell of the classes.

        Raises:
            DataError: Classes do not fit, or the validation data lack what evaluating needs.
        """
        hard = self.objective.hard
        note = None
        if hard.metric == "accuracy":
            hint = " (key 'model.classes')" if self.recipe.model else ""
            note = check_classes(self.data, hard.classes, self.source, hint)
        notes = [] if note is None else [note]
        if self.validation is None:
            return notes
        shapes = self.data.shapes
        for column in [*(f.column for f in hard.feeds), *([hard.target] if hard.metric else [])]:
            found = self.validation.shapes.get(column)
            if found != shapes[column]:
                what = "no such column" if found is None else f"samples of shape {found}"
                raise DataError(
                    f"{self.recipe.data.validation or self.source}: validation has {what} for "
                    f"{column!r}, training has shape {shapes[column]}"
                )
        return notes

    def _with_regularizer(self, loss: Variable) -> Variable:
        strength, budget = self.recipe.strength, self.recipe.budget
        if budget is not None:
            if not self.network.mixtures:
                raise RecipeError(
                    "key 'budget' needs quantizers to choose from, such as minmax:2,3,4,8"
                )
            # The penalty is for activations then, which a budget does not choose for.
            if self._mixes_activations:
                self.strength = PULL * total_weights() if strength is None else strength
            try:
                return F.add2(loss, regularizer(self.strength, budget=budget))
            except BudgetError as error:
                raise RecipeError(f"key 'budget': {error}") from None
        if not any(mixture.mixing.penalised for mixture in self.mixed.values()):
            return loss
        self.strength = PULL * total_weights() if strength is None else strength
        return F.add2(loss, regularizer(self.strength)) if self.strength else loss

    def _solver(self) -> Any:
        solver = self.recipe.make_solver()
        if self.network.mixtures:
            rate = self.recipe.attention_lr
            schedules = (self._schedule(), *self._sharpening())
            solver = attach(solver, *schedules, attention_lr=rate, restart=True)
        used = LiveGraph.of({"loss": self.loss}).leaves
        solver.set_parameters({k: v for k, v in nn.get_parameters().items() if v.data in used})
        return solver

    def _schedule(self) -> Optional[Schedule]:
        """The schedule of the layers' mixing rule; None if nothing is mixed.

        Raises:
            NNPError: Layers have mixing rules with different schedules.
        """
        made = {
            name: self.recipe.make_schedule(mixture, self.steps, self.steps_per_epoch)
            for name, mixture in self.mixed.items()
        }
        first = next(iter(made), "")
        for name, schedule in made.items():
            if schedule != made[first]:
                labels = [type(self.mixed[key].mixing).__name__ for key in (first, name)]
                raise NNPError(
                    f"{self.recipe.network or 'the model'}: layer {first} is mixed by {labels[0]}, "
                    f"layer {name} by {labels[1]}; one training has one schedule: use one mixing "
                    f"rule"
                )
        return made.get(first)

    def _sharpening(self) -> List[Schedule]:
        """The schedules of quantizers that are soft in training, each once."""
        made: List[Schedule] = []
        for mixture in self.network.mixtures.values():
            for q in mixture.quantizers:
                schedule = self.recipe.make_sharpening(q, self.steps, self.steps_per_epoch)
                if schedule is not None and schedule not in made:
                    made.append(schedule)
        return made

    def _unused_keys(self) -> List[str]:
        """Messages for keys that have no effect here, and what the mixing rules warn of."""
        unused = []
        if self.network.teacher is None:
            unused += ["distillation_weight", "distillation_temperature"]
        if self.recipe.bn_statistics == "hard" and not self.is_hard_at(self.steps - 1):
            unused.append("bn_statistics")
        if not self._statistics:
            unused.append("bn_statistics")
        if not self._statistics or not any(map(self.recipe.statistics_at, ("hard", "deploy"))):
            unused.append("update_normalization")
        if not any(mixture.mixing.penalised for mixture in self.mixed.values()):
            unused += ["temperature", "order_from", "lambda", "attention_lr"]
        elif self.recipe.budget is not None and not self._mixes_activations:
            unused += ["order_from", "lambda"]
        mixtures = self.network.mixtures.values()
        known = {name for m in mixtures for q in m.quantizers for name in q.schedule_options}
        if not set(self.recipe.sharpening) <= known:
            unused.append("sharpening")
        plain, own = Recipe(self.recipe.data).to_json(), self.recipe.to_json()
        # Recipes of models share a base or preset, whose keys not all of them need.
        known_unused = [] if self.recipe.model else dict.fromkeys(unused)
        needless = [k for k in known_unused if own.get(k) != plain.get(k)]
        messages = [f"key {key!r} of the recipe has no effect here" for key in needless]
        return messages + rule_warnings(self.network.mixtures)

    def _taught(self) -> List[str]:
        """What the user should know of the teacher."""
        if self.network.teacher is None:
            return []
        recipe, path = self.recipe, self.network.teacher.path
        return [
            f"teacher {path.name}: its distance is {recipe.taught:g} of the loss, at temperature "
            f"{recipe.distillation_temperature:g}"
        ]

    @property
    def teacher(self) -> Optional[Dict[str, Any]]:
        """File and checksum of what is learned from, for a run's record; None without one."""
        teacher = self.network.teacher
        return None if teacher is None else {"file": str(teacher.path), "sum": teacher.checksum}

    def fill(self, batch: Mapping[str, np.ndarray]) -> None:
        with self._named(self.source):
            fill(self.objective.feeds, batch)

    @contextlib.contextmanager
    def _named(self, source: str) -> Iterator[None]:
        """Name the data, and the key that says how many classes there are, in a LabelError."""
        try:
            yield
        except LabelError as error:
            hint = "; key 'model.classes' says how many there are" if self.recipe.model else ""
            raise LabelError(f"{source}: {error}{hint}") from None

    def correct(self) -> Optional[int]:
        if self.objective.scores is None:
            return None
        labels = self.objective.feeds[-1].variable.d[:, 0]
        return int(np.sum(self.objective.scores.d.argmax(1) == labels))

    def watched(self) -> List[Variable]:
        return [] if self.objective.scores is None else [self.objective.scores]

    def evaluate(self) -> Scores:
        hard, soft = self.objective.hard, self.objective.soft
        if self.validation is None or not hard.metric:
            return Scores()
        if all(layer.is_hard for layer in self.layers):
            soft = None
        evaluations = [hard, *([soft] if soft else [])]
        with self._named(self.recipe.data.validation or self.source):
            found = evaluate(evaluations, self.validation, self.communicator, self.workers)
        top5 = hard.metric == "accuracy" and hard.classes >= MANY_CLASSES
        return Scores(
            hard.metric,
            found[0].value,
            found[1].value if soft else None,
            found[0].top5 if top5 else None,
        )

    def begin_hard(self) -> None:
        samples = self.recipe.statistics_at("hard")
        if samples:
            self.estimate_statistics(samples)

    def estimate_statistics(self, samples: int, augmented: bool = True) -> None:
        """Running statistics as the network with the target quantizers sees the training data.

        Args:
            samples: How many of them, rounded down to whole mini-batches.
            augmented: As they are in the first epoch, which is what the network is trained on;
                False: as they are for evaluation.
        """
        data = self.data.at_epoch(0) if augmented else self.data
        size = min(self.recipe.batch_size, len(self.data))
        count = max(1, min(samples, len(self.data)) // size)
        rows = batches_of(len(self.data), size, self.recipe.seed, 0)[:count]
        with nn.parameter_scope("", self.scope), nn.auto_forward(False), in_float32():
            feeds, output = self.network.to_estimate(self.data.shapes, size)
            computed = fast([output], trains=False)[0]

        def filled() -> Iterator[None]:
            with Prefetcher(data.batch, rows, self.workers) as batches:
                for batch in batches:
                    fill(feeds, batch)
                    yield

        estimate(output, filled(), computed)

    def identity(self) -> Dict[str, Any]:
        context = nn.get_current_context()
        half = context.backend != float_context(context).backend
        return {
            "recipe": self.recipe.decisive(),
            "type_config": "half" if half else "float",
            "source": self.network.identity,
            "teacher": None if self.network.teacher is None else self.network.teacher.checksum,
            "data": self._checksum,
        }

    def statistics(self) -> List[Any]:
        return self._statistics
