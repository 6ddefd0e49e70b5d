"""Training a converted NNP by a recipe."""

from __future__ import annotations

import dataclasses
import warnings
from typing import Any, Callable, Dict, List, Mapping, Optional

import nnabla as nn
import nnabla.functions as F
import numpy as np

from nnabla_dqa._util.devices import float_context
from nnabla_dqa._util.files import PathLike
from nnabla_dqa.data import DataError
from nnabla_dqa.distributed import given_or_single
from nnabla_dqa.graph.traverse import LiveGraph
from nnabla_dqa.layers.report import report
from nnabla_dqa.layers.tensors import AttentionWarning
from nnabla_dqa.mixing import BinaryRelax
from nnabla_dqa.nnp.archive import check_output
from nnabla_dqa.nnp.bn_reestimate import estimate_statistics
from nnabla_dqa.nnp.live import Program
from nnabla_dqa.quantization.graph_ops import Variable
from nnabla_dqa.recipes.recipe import Recipe
from nnabla_dqa.regularization import regularizer, total_weights
from nnabla_dqa.solver.attached import AttachedSolver, attach
from nnabla_dqa.training.checkpoint import checkpoint_path
from nnabla_dqa.training.loop import SAVE_SECONDS, Loop
from nnabla_dqa.training.result import Epoch, Training
from nnabla_dqa.training.tasks.evaluation import evaluate
from nnabla_dqa.training.tasks.objective import input_batches, make_task
from nnabla_dqa.training.tasks.plan import runtime
from nnabla_dqa.training.tasks.preparation import (
    check_validation,
    fix_parameters,
    read_trainable,
    schedule_of,
    unused_keys,
)
from nnabla_dqa.training.tasks.sources import fingerprint, open_sources, teacher_of, without_folders
from nnabla_dqa.training.trainable import Job, Scores

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
    context: Optional[nn.Context] = None,
    save_seconds: float = SAVE_SECONDS,
) -> Training:
    """Train a converted NNP.

    A checkpoint is written beside ``target`` (``<target>.checkpoint``),
    atomically: after each epoch, every ``save_seconds``, and when the training
    is stopped. At the end ``target`` is written: the converted NNP with its
    trained parameters.

    Args:
        source: A converted NNP.
        recipe: How.
        target: The NNP to write.
        resume: Go on from the checkpoint beside ``target``.
        monitor: Folder for :class:`~nnabla_dqa.training.monitors.Monitors`.
        on_epoch: Called after each epoch.
        progress: Show a progress bar on stderr.
        on_message: Called before the first epoch with each thing the user
            should know; they are in the result too.
        context: Where it is computed, in float32 also if it is a half context;
            default: NNabla's current context.
        save_seconds: Longest time without a checkpoint.

    Raises:
        NNPError, RecipeError, DataError, CheckpointError: With one line that
            names the file, key or column.
        NonFiniteError: The loss, a weight or a gradient became NaN or infinite;
            the last checkpoint is kept.
        TrainingStopped: On Ctrl-C or SIGTERM; a checkpoint is kept.
    """
    context = float_context(context or nn.get_current_context())
    with warnings.catch_warnings(), nn.context_scope(context):
        # The messages of the result say it, once.
        warnings.simplefilter("ignore", AttentionWarning)
        run = _FileJob(source, recipe, target)
        loop = Loop(run, checkpoint_path(run.target), save_seconds)
        if resume:
            loop.resume()
        if on_message is not None:
            for message in run.messages:
                on_message(message)
        return run.finish(loop, loop.run(on_epoch, monitor, progress))


class _FileJob(Job):
    def __init__(self, source: PathLike, recipe: Recipe, target: PathLike) -> None:
        self.settings = self.recipe = recipe
        self.communicator = given_or_single(None)
        used = [source, recipe.data.train, recipe.data.validation, recipe.teacher]
        self.target = check_output(target, [path for path in used if path is not None])
        self.file = read_trainable(source)
        self.source = recipe.data.train
        self.data, self.validation, self.messages = open_sources(recipe)
        self.messages += unused_keys(self.file, recipe)
        if recipe.batch_size > len(self.data):
            raise DataError(
                f"{recipe.data.train}: has {len(self.data)} samples, fewer than "
                f"batch_size={recipe.batch_size}"
            )
        self.program = Program(self.file)
        self.scope = self.program.scope
        self.messages += fix_parameters(self.program)
        nn.seed(recipe.seed)
        teacher = teacher_of(self.file, recipe) if recipe.loss == "distillation" else None
        self.task = make_task(self.program, recipe, self.data.shapes, teacher)
        if self.validation is not None:
            check_validation(self.task, self.data, self.validation, recipe)
        with nn.parameter_scope("", self.program.scope):
            self.loss = self._total()
            self.solver = self._attach()
        self._fingerprint = fingerprint(self.data)

    def _attach(self) -> AttachedSolver:
        solver = attach(
            self.recipe.make_solver(),
            schedule_of(self.file, self.recipe, self.steps_per_epoch),
            attention_lr=self.recipe.attention_lr,
            restart=True,
        )
        used = LiveGraph.of({"loss": self.loss}).leaves
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

    def fill(self, batch: Mapping[str, np.ndarray]) -> None:
        self.task.fill(self.task.feeds, batch)

    def evaluate(self) -> Scores:
        if self.validation is None:
            return Scores()
        score = evaluate(self.task, self.validation, self.recipe.batch_size)
        return Scores(self.task.metric, score)

    def parameters(self) -> Dict[str, Variable]:
        known = self.program.parameters()
        return {name: known[name] for name in self.program.arrays()}

    def identity(self) -> Dict[str, Any]:
        return {
            "recipe": without_folders(self.recipe),
            "source": self.file.archive.metadata,
            "data": self._fingerprint,
        }

    def _update_normalization(self, epochs: List[Epoch]) -> List[Epoch]:
        """Running statistics as the network with the lowest bits sees the training data."""
        size = self.recipe.batch_size
        count = max(1, min(self.recipe.update_normalization, len(self.data)) // size)
        samples = input_batches(self.file, self.recipe, self.data, size, count)
        network, _ = runtime(self.file, self.recipe)
        parameters = self.program.parameters()
        for name, array in estimate_statistics(self.program, network, samples, size).items():
            parameters[name].d = array
        return [*epochs[:-1], dataclasses.replace(epochs[-1], score=self.evaluate().hard)]

    def finish(self, loop: Loop, epochs: List[Epoch]) -> Training:
        """Write the trained file."""
        if self.recipe.update_normalization:
            epochs = self._update_normalization(epochs)
        metadata = dict(self.file.archive.metadata or {})
        metadata["training"] = {
            "recipe": without_folders(self.recipe),
            "epochs": [epoch.summary() for epoch in epochs],
        }
        result = self.file.with_parameters(self.program.arrays())
        result.archive.metadata = metadata
        result.save(self.target)
        summary = report(self.program.scope)
        built = {layer.name for layer in self.program.layers}
        unused = [layer.name for layer in self.file.rewritten if layer.name not in built]
        told = [f"layer {name} is in no network that was trained" for name in unused]
        if self.recipe.hard and not self.is_hard_at(self.steps):
            told.append(f"{self.steps} updates are too few for a hard end: the layers are soft")
        return Training(
            self.target,
            loop.checkpoint,
            tuple(epochs),
            summary,
            (*self.messages, *summary.messages(), *told),
        )
