"""Training a converted NNP by a recipe."""

from __future__ import annotations

import dataclasses
import time
import warnings
from pathlib import Path
from typing import Any, Callable, Dict, List, Optional

import nnabla as nn
import nnabla.functions as F
import numpy as np
from tqdm import tqdm

from nnabla_dqa.data import DataError, iterate
from nnabla_dqa.files import PathLike
from nnabla_dqa.graph.archive import check_output
from nnabla_dqa.graph.live import LiveGraph
from nnabla_dqa.graph.normalization import estimate_statistics
from nnabla_dqa.graph.program import Program
from nnabla_dqa.layers import AttentionWarning
from nnabla_dqa.mixing import BinaryRelax
from nnabla_dqa.regularization import regularizer, total_weights
from nnabla_dqa.reporting.summary import report
from nnabla_dqa.training.checkpoint import (
    CheckpointError,
    checkpoint_path,
    difference,
    read_checkpoint,
    write_checkpoint,
)
from nnabla_dqa.training.evaluation import evaluate
from nnabla_dqa.training.guard import NonFiniteError
from nnabla_dqa.training.interrupt import InterruptGuard
from nnabla_dqa.training.outcome import Epoch, Monitors, Training, TrainingStopped
from nnabla_dqa.training.plan import runtime
from nnabla_dqa.training.preparation import (
    check_validation,
    fix_parameters,
    read_trainable,
    schedule_of,
    unused_keys,
)
from nnabla_dqa.training.recipe import Recipe
from nnabla_dqa.training.solver import AttachedSolver, attach
from nnabla_dqa.training.sources import fingerprint, open_sources, teacher_of, without_folders
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
    on_message: Optional[Callable[[str], None]] = None,
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
        on_message: Called before the first epoch with each thing the user
            should know; they are in the result too.

    Raises:
        NNPError, RecipeError, DataError, CheckpointError: With one line that
            names the file, key or column.
        NonFiniteError: The loss, a weight or a gradient became NaN or infinite;
            the last checkpoint is kept.
        TrainingStopped: On Ctrl-C; the last checkpoint is kept.
    """
    with warnings.catch_warnings():
        # The messages of the result say it, once.
        warnings.simplefilter("ignore", AttentionWarning)
        run = _Run(source, recipe, target)
        if resume:
            run.resume()
        if on_message is not None:
            for message in run.messages:
                on_message(message)
        return run.finish(run.epochs(on_epoch, monitor, progress))


class _Run:
    def __init__(self, source: PathLike, recipe: Recipe, target: PathLike) -> None:
        self.recipe = recipe
        used = [source, recipe.data.train, recipe.data.validation, recipe.teacher]
        self.target = check_output(target, [path for path in used if path is not None])
        self.checkpoint = checkpoint_path(target)
        self.file = read_trainable(source)
        self.data, self.validation, self.messages = open_sources(recipe)
        self.messages += unused_keys(self.file, recipe)
        if recipe.batch_size > len(self.data):
            raise DataError(
                f"{recipe.data.train}: has {len(self.data)} samples, fewer than "
                f"batch_size={recipe.batch_size}"
            )
        self.steps_per_epoch = len(self.data) // recipe.batch_size
        self.steps = self.steps_per_epoch * recipe.epochs
        self.program = Program(self.file)
        self.messages += fix_parameters(self.program)
        nn.seed(recipe.seed)
        teacher = teacher_of(self.file, recipe) if recipe.loss == "distillation" else None
        self.task = make_task(self.program, recipe, self.data.shapes, teacher)
        if self.validation is not None:
            check_validation(self.task, self.data, self.validation, recipe)
        with nn.parameter_scope("", self.program.scope):
            self.total = self._total()
            self.solver = self._attach()
        self.history: List[Epoch] = []

    def _attach(self) -> AttachedSolver:
        solver = attach(
            self.recipe.make_solver(),
            schedule_of(self.file, self.recipe, self.steps_per_epoch),
            self.recipe.attention_lr,
            restart=True,
        )
        used = LiveGraph.of({"loss": self.total}).leaves
        solver.set_parameters({k: v for k, v in nn.get_parameters().items() if v.data in used})
        return solver

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
        series = None if monitor is None else Monitors(monitor, self.history)
        saved = len(self.history)
        try:
            with InterruptGuard() as guard:
                for epoch in range(saved, self.recipe.epochs):
                    done = self._epoch(epoch, progress, guard)
                    self.history.append(done)
                    self._write_checkpoint()
                    saved += 1
                    if series is not None:
                        series.add(done)
                    if on_epoch is not None:
                        on_epoch(done)
                    guard.check()
        except KeyboardInterrupt:
            raise TrainingStopped(saved, self.checkpoint) from None
        return self.history

    def _epoch(self, epoch: int, progress: bool, guard: InterruptGuard) -> Epoch:
        started = time.perf_counter()
        recipe = self.recipe
        # Dropout and augmentation too depend on seed and epoch alone, so that resuming changes
        # nothing.
        nn.seed((recipe.seed * 65537 + epoch) % 2**31)
        losses = []
        rate = recipe.learning_rate
        batches = iterate(self.data, recipe.batch_size, recipe.seed, epoch)
        was_hard = self._is_hard()
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
                guard.check()
                bar.update()
                if i % 20 == 0:
                    bar.set_postfix(loss=f"{np.mean(losses[-20:]):.4f}", refresh=False)
        score = None
        if self.validation is not None:
            score = evaluate(self.task, self.validation, recipe.batch_size)
        metric = self.task.metric if score is not None else ""
        seconds = time.perf_counter() - started
        return Epoch(epoch + 1, float(np.mean(losses)), rate, was_hard, metric, score, seconds)

    def _is_hard(self) -> bool:
        """Whether the next update uses the lowest bit widths alone."""
        return self.solver.annealer is None or self.solver.annealer.is_hard

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
        if self.validation is not None and self.history:
            score = evaluate(self.task, self.validation, size)
            self.history[-1] = dataclasses.replace(self.history[-1], score=score)

    def _notes(self) -> Dict[str, Any]:
        return {
            "recipe": without_folders(self.recipe),
            "source": self.file.archive.metadata,
            "data": fingerprint(self.data),
            "epochs": [dataclasses.asdict(epoch) for epoch in self.history],
        }

    def _write_checkpoint(self) -> None:
        arrays = {name: v.array for name, v in self.program.arrays().items()}
        write_checkpoint(self.checkpoint, arrays, self.solver, self._notes())

    def resume(self) -> None:
        """Take over the checkpoint; refuse one of another recipe, file or data."""
        checkpoint = read_checkpoint(self.checkpoint)
        mine = self._notes()
        for key in ("recipe", "source", "data"):
            found, wanted = checkpoint.notes.get(key), mine[key]
            if found != wanted:
                what = difference(found, wanted, key)
                if key == "data":
                    what = f"{Path(self.recipe.data.train).name}: {what}"
                raise CheckpointError(f"{self.checkpoint}: belongs to another training: {what}")
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
        for key in ("source", "data"):
            del metadata["training"][key]
        for epoch in metadata["training"]["epochs"]:
            # Equal trainings make equal files.
            del epoch["seconds"]
        result = self.file.with_parameters(self.program.arrays())
        result.archive.metadata = metadata
        result.save(self.target)
        summary = report(self.program.scope)
        built = {layer.name for layer in self.program.layers}
        unused = [layer.name for layer in self.file.rewritten if layer.name not in built]
        told = [f"layer {name} is in no network that was trained" for name in unused]
        if self.recipe.hard and not self._is_hard():
            told.append(f"{self.steps} updates are too few for a hard end: the layers are soft")
        return Training(
            self.target,
            self.checkpoint,
            tuple(epochs),
            summary,
            (*self.messages, *summary.messages(), *told),
        )
