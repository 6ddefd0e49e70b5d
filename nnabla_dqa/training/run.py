"""Training by a recipe: an NNP or a model, into a file or the folder of a run."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import time
import warnings
from pathlib import Path
from typing import Any, Callable, Dict, Optional, Union

import nnabla as nn
import numpy as np

from nnabla_dqa._util.devices import float_context, is_half
from nnabla_dqa._util.files import PathLike
from nnabla_dqa.budget.sizes import bytes_taken
from nnabla_dqa.budget.state import weights_of
from nnabla_dqa.distributed import Communicator, check_equal, given_or_single
from nnabla_dqa.distributed.nccl import check_device
from nnabla_dqa.layers.report import report
from nnabla_dqa.layers.tensors import AttentionWarning
from nnabla_dqa.nnp.file import NetworkFile
from nnabla_dqa.nnp.live import Program
from nnabla_dqa.nnp_format.limits import MAX_BYTES
from nnabla_dqa.nnp_format.members import check_output
from nnabla_dqa.recipes.recipe import Recipe, RecipeError, method_of
from nnabla_dqa.recipes.yaml_files import is_nnp, placed
from nnabla_dqa.solver.finite_check import NonFiniteError
from nnabla_dqa.training.checkpoint import checkpoint_path
from nnabla_dqa.training.event_files import check_tensorboard, event_files
from nnabla_dqa.training.lock import locked
from nnabla_dqa.training.loop import SAVE_SECONDS, Loop, OnEpoch, OnStep, gather_skipped
from nnabla_dqa.training.loss_scaler import LossScaler
from nnabla_dqa.training.result import Training
from nnabla_dqa.training.run_folder import RunFolder, environment, write_json
from nnabla_dqa.training.tasks.evaluation import Measured, evaluate
from nnabla_dqa.training.tasks.objective import make_evaluation
from nnabla_dqa.training.tasks.plan import find_run
from nnabla_dqa.training.tasks.task import MANY_CLASSES, Task

RecipeLike = Union[Recipe, PathLike]


def train(
    what: RecipeLike,
    recipe: Optional[RecipeLike] = None,
    target: Optional[PathLike] = None,
    resume: bool = False,
    monitor: Optional[PathLike] = None,
    on_epoch: OnEpoch = None,
    progress: bool = False,
    on_message: Optional[Callable[[str], None]] = None,
    context: Optional[nn.Context] = None,
    save_seconds: float = SAVE_SECONDS,
    folder: Optional[PathLike] = None,
    communicator: Optional[Communicator] = None,
    on_step: OnStep = None,
    max_bytes: Optional[int] = None,
    tensorboard: bool = False,
) -> Training:
    """Train by a recipe.

    A checkpoint is written atomically: after each epoch, every
    ``save_seconds``, and when the training is stopped. Several processes call
    it together, each with its own communicator; the first one writes.

    Args:
        what: A recipe (or its YAML file) that names a network or a model; or an
            NNP to train by ``recipe``.
        recipe: For an NNP: a recipe or its YAML file.
        target: The NNP to write: a converted NNP with its trained parameters,
            or a model deployed; its checkpoint is ``<target>.checkpoint``.
            Default: in ``folder``, one of the two is needed.
        resume: Go on from the checkpoint; from the start if a folder has none yet.
        monitor: Folder for :class:`~nnabla_dqa.training.monitors.Monitors`;
            default: in ``folder``.
        on_epoch: Called after each epoch, in the first process.
        progress: Show a progress bar on stderr.
        on_message: Called before the first epoch with each thing the user
            should know; they are in the result too.
        context: NNabla's; default: the current one. In a half context the
            layers compute in half precision, the loss is scaled, and quantizers,
            attention and solver stay in float32.
        save_seconds: Longest time without a checkpoint.
        folder: Made, or with ``resume`` that of the run to go on with; see
            :class:`~nnabla_dqa.training.run_folder.RunFolder`.
        communicator: The processes that train together; needed where a launcher
            started several.
        on_step: Called before each step with what is trained and the number of
            steps done, in every process.
        max_bytes: What the NNP, or a teacher, may unpack to; the default is that
            of :meth:`nnabla_dqa.nnp_format.archive.Archive.read`.
        tensorboard: Write TensorBoard event files there too, see
            :class:`~nnabla_dqa.training.event_files.EventFiles`. A training
            that wrote them and is resumed goes on writing them.

    Raises:
        NNPError, RecipeError, DataError, CheckpointError, RunError: One line
            that names the file, folder, key or column.
        NonFiniteError: The loss, a weight or a gradient became NaN or infinite;
            the last checkpoint is kept, and ``run.json`` says where it was.
        ParallelError: The processes do not agree.
        TensorboardMissingError: ``tensorboard`` without tensorboardX; names the extra.
        TrainingStopped: On Ctrl-C or SIGTERM; a checkpoint is kept.

    Examples:
        >>> import nnabla_dqa as dqa
        >>> recipe = dqa.Recipe(
        ...     "digits.npz",
        ...     quantizers="minmax:2,4,8",
        ...     loss="distillation",
        ...     batch_size=8,
        ...     epochs=4,
        ... )
        >>> training = dqa.train("lenet.nnp", recipe, "lenet_trained.nnp")
        >>> [epoch.hard for epoch in training.epochs]
        [False, False, False, True]
    """
    made = recipe_of(what, recipe)
    comm, context = given_or_single(communicator), context or nn.get_current_context()
    check_device(comm, context)
    place = None if folder is None else RunFolder(folder)
    if place is not None and monitor is None:
        monitor = place.monitors
    tensorboard = _writes_events(monitor, tensorboard, resume)
    written_to = _target(made, target, place)
    checkpoint = checkpoint_path(written_to or "") if place is None else place.checkpoint
    if place is not None:
        place.check_may_begin(made, resume)
    text = repr(sorted(made.to_json().items()))
    check_equal(comm, {"the recipe": np.frombuffer(text.encode(), np.uint8)})
    with warnings.catch_warnings(), nn.context_scope(context):
        # The messages of the result contain them, once.
        warnings.simplefilter("ignore", AttentionWarning)
        task = Task(made, comm, max_bytes)
        if place is not None:
            if comm.rank == 0 and not resume:
                # Only now: an error up to here leaves nothing behind.
                place.begin(made)
            place.check_seen(comm)
        # The first process writes for all of them.
        with locked(checkpoint) if comm.rank == 0 else contextlib.nullcontext():
            scaler = LossScaler() if is_half(context) else None
            loop = Loop(task, checkpoint, save_seconds, scaler)
            if resume and (place is None or checkpoint.exists()):
                loop.resume()
            if place is not None and comm.rank == 0:
                start = {"seed": made.seed, "from_step": loop.at.step, "teacher": task.teacher}
                place.note_start({**start, **environment(context, comm.size)})
            if on_message is not None and comm.rank == 0:
                for message in task.messages:
                    on_message(message)
            started = time.perf_counter()
            try:
                loop.run(on_epoch, monitor, progress, on_step, tensorboard)
            except NonFiniteError as error:
                if place is not None and comm.rank == 0:
                    place.note_failure(loop.failure(error))
                raise
            with nn.context_scope(float_context(context)):
                return _finish(task, loop, written_to, place, time.perf_counter() - started)


def recipe_of(what: RecipeLike, recipe: Optional[RecipeLike] = None) -> Recipe:
    """The recipe that the first two arguments of :func:`train` mean.

    Raises:
        RecipeError: It is damaged, or names nothing to train.
    """
    network = None
    if is_nnp(what):
        if recipe is None:
            raise RecipeError(f"{what}: a recipe is needed: how to train it")
        network, what = str(what), recipe
    elif recipe is not None:
        raise RecipeError("train: the first argument is a recipe, or the NNP to train by it")
    if isinstance(what, Recipe):
        made = Recipe.from_mapping(placed(what.to_json(), os.getcwd()))
    else:
        made = Recipe.from_yaml(what, None if network is None else {"network": network})
    made = dataclasses.replace(made, data=made.data.resolved())
    return made if network is None else dataclasses.replace(made, network=network)


def _writes_events(folder: Optional[PathLike], wanted: bool, resume: bool) -> bool:
    """Whether there will be event files in the folder of the monitor files.

    Raises:
        RecipeError: There is no folder for them.
        TensorboardMissingError: Without tensorboardX.
    """
    if folder is None:
        if wanted:
            raise RecipeError("tensorboard: a folder or monitor is needed, to write event files to")
        return False
    if wanted or (resume and event_files(folder)):
        check_tensorboard()
        return True
    return False


def _target(
    recipe: Recipe, target: Optional[PathLike], place: Optional[RunFolder]
) -> Optional[Path]:
    """The NNP to write besides what a model is deployed to in the folder."""
    if target is not None:
        used = [recipe.network, recipe.data.train, recipe.data.validation, recipe.teacher]
        return check_output(target, [path for path in used if path is not None])
    if place is None:
        raise RecipeError("train: a target or a folder is needed, to write to")
    return place.path / "trained.nnp" if recipe.model is None else None


def _finish(
    task: Task, loop: Loop, target: Optional[Path], place: Optional[RunFolder], seconds: float
) -> Training:
    """Write the networks and the result; evaluate what was deployed."""
    comm, epochs = task.communicator, list(loop.at.history)
    has_new_statistics = bool(task.recipe.statistics_at("deploy") and task.statistics())
    if has_new_statistics:
        task.estimate_statistics(task.recipe.statistics_at("deploy"))
        scores = task.evaluate()
        epochs[-1] = dataclasses.replace(
            epochs[-1], score=scores.hard, soft_score=scores.soft, top5=scores.top5
        )
    folder = None if place is None else place.path
    written = None
    if comm.rank == 0:
        written = task.network.write(target, folder, epochs)
    files = comm.gather([str(written.trained), str(written.deployed or "")] if written else None)
    trained, deployed = (Path(name) if name else None for name in files[0])
    measured = _measure(task, deployed) if deployed is not None and folder is not None else None
    table = report(task.scope) if task.layers else None
    messages = [*task.messages, *(table.messages() if table is not None else [])]
    messages += [m for m in task.network.messages if m not in messages]
    if task.mixed and task.recipe.hard_fraction and not task.is_hard_at(task.steps):
        messages.append(f"{task.steps} steps are too few for a hard phase: the layers are mixed")
    if task.recipe.budget is not None:
        taken = bytes_taken(task.scope, weights_of(task.scope))
        messages.append(f"budget: {taken:,} of {task.recipe.budget:,} bytes are taken")
    skipped = {**loop.at.skipped, **gather_skipped(comm, task.data.skipped)}
    if task.validation is not None:
        skipped.update(gather_skipped(comm, task.validation.skipped))
    messages += [f"skipped: {path}: {reason}" for path, reason in skipped.items()]
    assert trained is not None
    result = Training(
        trained,
        loop.checkpoint,
        tuple(epochs),
        table,
        tuple(messages),
        folder,
        deployed,
        measured.value if measured is not None else None,
        has_new_statistics,
    )
    if place is not None and written is not None:
        more = {"skipped_images": len(skipped), "starts": place.starts()}
        more["seconds_this_start"] = round(seconds, 1)
        write_json(place.result, _content(task, result, measured, {**written.notes, **more}))
    return result


def _measure(task: Task, path: Path) -> Optional[Measured]:
    """The scores of a deployed file on the validation data."""
    hard = task.objective.hard
    if task.validation is None or not hard.metric:
        return None
    file = NetworkFile.read(path, MAX_BYTES)
    made, _ = make_evaluation(
        Program(file),
        find_run(file, output=task.recipe.output),
        task.recipe.data,
        task.validation.shapes,
        hard.batch_size,
        hard.target,
    )
    made = dataclasses.replace(made, metric=hard.metric, threshold=hard.threshold)
    return evaluate([made], task.validation, task.communicator, task.workers)[0]


def _content(
    task: Task, result: Training, measured: Optional[Measured], notes: Dict[str, Any]
) -> Dict[str, Any]:
    """What ``result.json`` holds."""
    metric = task.objective.hard.metric
    classified = measured if metric == "accuracy" else None
    many = task.objective.hard.classes >= MANY_CLASSES
    off_target = [row for row in result.report.layers if not row.on_target] if result.report else []
    rows = result.report.layers if result.report else ()
    gaps = {row.name: row.soft_gap for row in rows if row.soft_gap is not None}
    return {
        "method": method_of(task.network.mixtures.values()),
        "metric": metric,
        "score": measured.value if measured is not None else None,
        "accuracy": classified.value if classified is not None else None,
        "top5": classified.top5 if classified is not None and many else None,
        "validation_images": measured.samples if measured is not None else 0,
        "off_target": len(off_target) if result.report else None,
        **({"soft_gap": gaps} if gaps else {}),
        **notes,
        "seconds_of_epochs": round(sum(epoch.seconds for epoch in result.epochs), 1),
        "data": task.identity()["data"],
        "recipe": task.recipe.to_json(),
        "epochs": [dataclasses.asdict(epoch) for epoch in result.epochs],
        "messages": list(result.messages),
    }
