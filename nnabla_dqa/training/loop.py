"""Training a converted NNP by a recipe."""

from __future__ import annotations

import dataclasses
import os
import time
from pathlib import Path
from typing import Any, Callable, Dict, List, Optional, Tuple

import nnabla as nn
import nnabla.functions as F
import numpy as np
from tqdm import tqdm

from nnabla_dqa.data import Data, DataError, iterate, open_data
from nnabla_dqa.files import PathLike
from nnabla_dqa.graph.archive import NNPError
from nnabla_dqa.graph.network_file import CONVERTED, NetworkFile
from nnabla_dqa.graph.normalization import estimate_statistics
from nnabla_dqa.graph.program import Program
from nnabla_dqa.mixing import BinaryRelax
from nnabla_dqa.regularization import regularizer, total_weights
from nnabla_dqa.reporting.summary import report
from nnabla_dqa.schedules import RelaxSchedule, Schedule, TemperatureSchedule
from nnabla_dqa.training.checkpoint import (
    CheckpointError,
    difference,
    read_checkpoint,
    write_checkpoint,
)
from nnabla_dqa.training.evaluation import evaluate
from nnabla_dqa.training.guard import NonFiniteError
from nnabla_dqa.training.outcome import Epoch, Monitors, Training, TrainingStopped
from nnabla_dqa.training.plan import runtime
from nnabla_dqa.training.recipe import Recipe
from nnabla_dqa.training.solver import AttachedSolver, attach
from nnabla_dqa.training.task import input_batches, make_task

PULL = 0.02
"""The default penalty: lambda / S, whatever the number of weights S is."""


def train(
    source: PathLike,
    recipe: Recipe,
    target: PathLike,
    resume: bool = False,
    monitor: Optional[PathLike] = None,
    on_epoch: Optional[Callable[[Epoch], None]] = None,
    progress: bool = False,
) -> Training:
    """Train a converted NNP.

    After each epoch a checkpoint is written beside ``target``
    (``<target>.checkpoint``), atomically. At the end ``target`` is written: the
    converted NNP with its trained parameters.

    Args:
        source: A converted NNP.
        recipe: How.
        target: The NNP to write.
        resume: Go on from the checkpoint beside ``target``.
        monitor: Folder for NNabla's monitor files (loss, score, learning rate).
        on_epoch: Called after each epoch.
        progress: Show a progress bar on stderr.

    Raises:
        NNPError, RecipeError, DataError, CheckpointError: With one line that
            names the file, key or column.
        NonFiniteError: The loss, a weight or a gradient became NaN or infinite;
            the last checkpoint is kept.
        TrainingStopped: On Ctrl-C; the last checkpoint is kept.
    """
    run = _Run(source, recipe, target)
    if resume:
        run.resume()
    return run.finish(run.epochs(on_epoch, monitor, progress))


def checkpoint_path(target: PathLike) -> Path:
    """Where :func:`train` keeps the checkpoint for ``target``."""
    return Path(f"{target}.checkpoint")


class _Run:
    def __init__(self, source: PathLike, recipe: Recipe, target: PathLike) -> None:
        self.recipe = recipe
        self.target = Path(target)
        self.checkpoint = checkpoint_path(target)
        self.file = NetworkFile.read(source)
        if self.file.kind != CONVERTED or not self.file.rewritten:
            what = f"a {self.file.kind} file" if self.file.kind != CONVERTED else "all float"
            raise NNPError(f"{source}: is {what}, nothing in it learns low bits; convert it first")
        self.messages: List[str] = []
        self.data, self.validation = self._open()
        if recipe.batch_size > len(self.data):
            raise DataError(
                f"{recipe.data.train}: has {len(self.data)} samples, fewer than "
                f"batch_size={recipe.batch_size}"
            )
        self.steps_per_epoch = len(self.data) // recipe.batch_size
        self.steps = self.steps_per_epoch * recipe.epochs
        self.program = Program(self.file)
        nn.seed(recipe.seed)
        teacher = self._teacher() if recipe.loss == "distillation" else None
        self.task = make_task(self.program, recipe, self.data.shapes, teacher)
        with nn.parameter_scope("", self.program.scope):
            self.solver = self._attach()
            self.total = self._total()
        self.history: List[Epoch] = []

    def _open(self) -> Tuple[Data, Optional[Data]]:
        options = self.recipe.data
        shape = options.image_shape
        data = open_data(options.train, "train", options.scale, shape)
        if options.limit is not None:
            data = data.take(min(options.limit, len(data)))
        source = options.validation
        if source is None and not os.path.isdir(options.train):
            return data, None
        classes = data.classes or None
        if classes:
            shape = data.shapes["x"]
        try:
            place = options.train if source is None else source
            validation = open_data(place, "validation", options.scale, shape, classes)
        except DataError as error:
            if source is not None:
                raise
            self.messages.append(f"no validation data: {error}")
            return data, None
        return data, validation

    def _teacher(self) -> Program:
        if self.recipe.teacher is not None:
            file = NetworkFile.read(self.recipe.teacher)
        elif self.file.steps:
            raise NNPError(
                f"{self.file.archive.path}: is trained already, so its weights are no teacher; "
                f"name the float file in the recipe: teacher: ..."
            )
        else:
            file = self.file
        return Program(file, quantized=False)

    def _schedule(self) -> Optional[Schedule]:
        mixed = [m.mixing for m in self.file.mixtures.values() if len(m.quantizers) > 1]
        if not mixed:
            return None
        if all(isinstance(mixing, BinaryRelax) for mixing in mixed):
            return RelaxSchedule.reaching(self.steps, self.steps_per_epoch, hard=self.recipe.hard)
        return TemperatureSchedule(self.steps, hard=self.recipe.hard, **self.recipe.temperature)

    def _attach(self) -> AttachedSolver:
        solver = attach(
            self.recipe.make_solver(), self._schedule(), self.recipe.attention_lr, restart=True
        )
        parameters = {name: v for name, v in nn.get_parameters().items() if v.need_grad}
        fixed = self._fixed()
        kept = [name for name in parameters if name in fixed]
        if kept:
            self.messages.append(f"kept fixed, as in the file's optimizer: {', '.join(kept)}")
        solver.set_parameters({k: v for k, v in parameters.items() if k not in fixed})
        return solver

    def _fixed(self) -> List[str]:
        """Parameters that the file's optimizer of the trained network does not train."""
        optimizers = self.file.archive.definition.optimizer
        return [
            listed.variable_name
            for optimizer in optimizers
            if optimizer.network_name == self.task.plan.network
            for listed in optimizer.parameter_variable
            if not listed.learning_rate_multiplier
        ]

    def _total(self) -> Any:
        """The loss with the penalty on attention, a graph of shape ()."""
        mixtures = self.file.mixtures.values()
        mixed = [m for m in mixtures if len(m.quantizers) > 1]
        if not mixed or any(isinstance(m.mixing, BinaryRelax) for m in mixed):
            return self.task.loss
        strength = self.recipe.lambda_
        if strength is None:
            strength = PULL * total_weights()
        with nn.auto_forward(False):
            return F.add2(self.task.loss, regularizer(strength)) if strength else self.task.loss

    def epochs(
        self,
        on_epoch: Optional[Callable[[Epoch], None]],
        monitor: Optional[PathLike],
        progress: bool,
    ) -> List[Epoch]:
        series = Monitors(monitor) if monitor is not None else None
        for epoch in range(len(self.history), self.recipe.epochs):
            try:
                done = self._epoch(epoch, progress)
                self.history.append(done)
                self._write_checkpoint()
            except KeyboardInterrupt:
                kept = self.checkpoint if self.history else None
                raise TrainingStopped(epoch + 1, kept) from None
            if series is not None:
                series.add(done)
            if on_epoch is not None:
                on_epoch(done)
        return self.history

    def _epoch(self, epoch: int, progress: bool) -> Epoch:
        started = time.perf_counter()
        recipe = self.recipe
        # Dropout and augmentation too depend on seed and epoch alone, so that resuming changes
        # nothing.
        nn.seed((recipe.seed * 65537 + epoch) % 2**31)
        losses = []
        rate = recipe.learning_rate
        batches = iterate(self.data, recipe.batch_size, recipe.seed, epoch)
        bar = tqdm(
            total=self.steps_per_epoch,
            desc=f"epoch {epoch + 1}/{recipe.epochs}",
            unit="batch",
            disable=None if progress else True,
            leave=False,
        )
        with bar:
            for i, batch in enumerate(batches):
                rate = recipe.learning_rate_at((epoch * self.steps_per_epoch + i) / self.steps)
                losses.append(self._update(batch, rate))
                bar.update()
                if i % 20 == 0:
                    bar.set_postfix(loss=f"{np.mean(losses[-20:]):.4f}", refresh=False)
        score = (
            None
            if self.validation is None
            else evaluate(self.task, self.validation, recipe.batch_size)
        )
        annealer = self.solver.annealer
        is_hard = annealer is None or annealer.is_hard
        metric = self.task.metric if score is not None else ""
        seconds = time.perf_counter() - started
        return Epoch(epoch + 1, float(np.mean(losses)), rate, is_hard, metric, score, seconds)

    def _update(self, batch: Dict[str, np.ndarray], rate: float) -> float:
        self.task.fill(self.task.feeds, batch)
        self.solver.zero_grad()
        self.total.forward(clear_no_need_grad=True)
        loss = float(self.total.d)
        if not np.isfinite(loss):
            raise NonFiniteError(
                f"the loss is {loss}; look for NaN in the data, or lower learning_rate "
                f"({self.recipe.learning_rate:g})"
            )
        self.total.backward(clear_buffer=True)
        self.solver.set_learning_rate(rate)
        if self.recipe.weight_decay:
            self.solver.weight_decay(self.recipe.weight_decay)
        self.solver.update()
        return loss

    def _update_normalization(self) -> None:
        """Running statistics as the network with the lowest bits sees the training data."""
        size = self.recipe.batch_size
        count = max(1, min(self.recipe.update_normalization, len(self.data)) // size)
        samples = input_batches(self.file, self.recipe, self.data, size, count)
        network, _ = runtime(self.file, self.recipe)
        parameters = self.program.parameters()
        for name, array in estimate_statistics(self.program, network, samples, size).items():
            parameters[name].d = array

    def _notes(self) -> Dict[str, Any]:
        return {
            "recipe": self.recipe.to_json(),
            "source": self.file.archive.metadata,
            "samples": len(self.data),
            "epochs": [dataclasses.asdict(epoch) for epoch in self.history],
        }

    def _write_checkpoint(self) -> None:
        arrays = {name: v.array for name, v in self.program.arrays().items()}
        write_checkpoint(self.checkpoint, arrays, self.solver, self._notes())

    def resume(self) -> None:
        """Take over the checkpoint; refuse one of another recipe, file or data."""
        checkpoint = read_checkpoint(self.checkpoint)
        mine = self._notes()
        for key in ("recipe", "source", "samples"):
            found, wanted = checkpoint.notes.get(key), mine[key]
            if found != wanted:
                raise CheckpointError(
                    f"{self.checkpoint}: belongs to another training: {difference(found, wanted)}"
                )
        parameters = self.program.parameters()
        for name, array in checkpoint.arrays.items():
            parameters[name].d = array
        self.solver.set_states_from_protobuf(checkpoint.solver)
        self.history = [Epoch(**epoch) for epoch in checkpoint.notes["epochs"]]
        if self.solver.annealer is not None:
            self.solver.annealer.apply()

    def finish(self, epochs: List[Epoch]) -> Training:
        """Write the trained file."""
        if self.recipe.update_normalization:
            self._update_normalization()
        metadata = dict(self.file.archive.metadata or {})
        metadata["training"] = self._notes()
        del metadata["training"]["source"]
        result = self.file.with_parameters(self.program.arrays())
        result.archive.metadata = metadata
        result.save(self.target)
        summary = report(self.program.scope)
        return Training(
            self.target,
            self.checkpoint,
            tuple(epochs),
            summary,
            (*self.messages, *summary.messages()),
        )
