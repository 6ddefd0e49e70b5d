"""The training loop: steps, epochs, checkpoints, one process or many."""

from __future__ import annotations

import contextlib
import time
from pathlib import Path
from typing import Any, Callable, Dict, List, Mapping, Optional

import nnabla as nn
import numpy as np
from tqdm import tqdm

from nnabla_dqa._util.files import PathLike, remove_parts
from nnabla_dqa._util.messages import one_line
from nnabla_dqa.data.prefetch import Prefetcher
from nnabla_dqa.data.sampler import batches_of
from nnabla_dqa.distributed import Communicator, check_equal
from nnabla_dqa.layers.tensors import QuantizedTensor
from nnabla_dqa.recipes.recipe import without_names
from nnabla_dqa.solver.attached import AttachedSolver
from nnabla_dqa.solver.finite_check import check_arrays
from nnabla_dqa.training.checkpoint import (
    CheckpointError,
    difference,
    read_checkpoint,
    write_checkpoint,
)
from nnabla_dqa.training.event_files import EventFiles
from nnabla_dqa.training.loss_scaler import LossScaler
from nnabla_dqa.training.monitors import Monitors
from nnabla_dqa.training.result import Epoch, TrainingStopped
from nnabla_dqa.training.signals import InterruptGuard, StopRequested
from nnabla_dqa.training.state import Progress
from nnabla_dqa.training.trainable import Trainable
from nnabla_dqa.training.update import Updater

OnEpoch = Optional[Callable[[Epoch], None]]
OnStep = Optional[Callable[[Trainable, int], None]]
"""Called before each step with what is trained and the number of steps done."""
SAVE_SECONDS = 600.0
LOSSES_KEPT = 100
"""Of the steps before an error, for :meth:`Loop.failure`."""


class Loop:
    """Trains from where its checkpoint stopped to its end.

    A checkpoint is written after each epoch, every ``save_seconds`` within
    one, and when the training is asked to stop (Ctrl-C, SIGTERM). What a step
    does depends on the parameters, the solver's states, the seed and the step
    alone, so a training that was stopped anywhere and resumed ends bit for
    bit as one that was not.

    Args:
        trainable: What is trained.
        checkpoint: The file; of several processes the first one writes it.
        save_seconds: Longest time without a checkpoint.
        scaler: For half precision.
    """

    def __init__(
        self,
        trainable: Trainable,
        checkpoint: Path,
        save_seconds: float = SAVE_SECONDS,
        scaler: Optional[LossScaler] = None,
    ) -> None:
        self.trainable = trainable
        self.checkpoint = checkpoint
        self._update = Updater(trainable, scaler)
        self.at = Progress()
        self._save_seconds = save_seconds
        self._saved_step = 0
        self._saved_time = time.monotonic()
        self._started = 0.0
        self._on_step: OnStep = None
        self._events: Optional[EventFiles] = None
        self._requests = nn.NdArray.from_numpy_array(np.zeros(2, np.float32))
        """Whether a process wants to stop, and to save: averaged with the gradients."""

    def run(
        self,
        on_epoch: OnEpoch = None,
        monitor: Optional[PathLike] = None,
        progress: bool = False,
        on_step: OnStep = None,
        tensorboard: bool = False,
    ) -> List[Epoch]:
        """Train to the end.

        Args:
            on_epoch: Called after each epoch.
            monitor: Folder for :class:`Monitors`; the first process writes it.
            progress: Show a progress bar on stderr.
            on_step: Called before each step, in every process.
            tensorboard: Write :class:`EventFiles` into the folder ``monitor`` too.

        Raises:
            NonFiniteError: The loss, a weight or a gradient is NaN or infinite;
                names the layer. The last checkpoint is kept.
            TrainingStopped: On Ctrl-C or SIGTERM, after the checkpoint is written.
            DataError: Data cannot be read.
            ParallelError: Parameters or temperature differ between processes.
        """
        self._on_step = on_step
        first = self.trainable.communicator.rank == 0
        series = Monitors(monitor, self.at.history) if monitor is not None and first else None
        if first:
            remove_parts(self.checkpoint)
        self._check_ranks()
        with contextlib.ExitStack() as stack:
            if tensorboard and monitor is not None and first:
                self._events = stack.enter_context(EventFiles(monitor, self.trainable, self.at))
            return self._run(series, on_epoch, progress and first)

    def _run(self, series: Optional[Monitors], on_epoch: OnEpoch, progress: bool) -> List[Epoch]:
        first = self.trainable.communicator.rank == 0
        try:
            with InterruptGuard() as guard:
                while len(self.at.history) < self.trainable.recipe.epochs:
                    done = self._epoch(progress, guard)
                    if self._events is not None:
                        self._events.epoch(done)
                    self.at.end_epoch(done)
                    self.save()
                    if series is not None:
                        series.add(done)
                    if on_epoch is not None and first:
                        on_epoch(done)
                    if len(self.at.history) < self.trainable.recipe.epochs:
                        self._stop_together(guard)
        except StopRequested:
            if self._saved_step != self.at.step:
                self.save()
            raise self._stopped(together=True) from None
        except KeyboardInterrupt:
            raise self._stopped(together=False) from None
        return self.at.history

    def _stop_together(self, guard: InterruptGuard) -> None:
        """Between epochs: raise StopRequested in all processes if one of them heard a signal."""
        if any(self.trainable.communicator.gather(guard.noted)):
            raise StopRequested

    def _stopped(self, together: bool) -> TrainingStopped:
        steps, saved = self.trainable.steps, self._saved_step
        return TrainingStopped(self.at.step, steps, saved, self.checkpoint, together)

    def _epoch(self, progress: bool, guard: InterruptGuard) -> Epoch:
        # What was spent on this epoch before the training was stopped counts too.
        self._started = time.perf_counter() - self.at.seconds
        task, epoch = self.trainable, len(self.at.history)
        first_step = epoch * task.steps_per_epoch
        bar = tqdm(
            total=task.steps_per_epoch,
            initial=self.at.step - first_step,
            desc=f"epoch {epoch + 1}/{task.recipe.epochs}",
            unit="batch",
            disable=None if progress else True,
            leave=False,
        )
        comm = task.communicator
        rows = batches_of(
            len(task.data),
            task.recipe.batch_size,
            task.recipe.seed,
            epoch,
            self.at.step - first_step,
            (comm.rank, comm.size),
        )
        view = task.data.at_epoch(epoch)
        with bar, Prefetcher(view.batch, rows, task.workers) as batches:
            for batch in batches:
                stop = self._step(batch, guard)
                bar.update()
                if self.at.step % 20 == 0:
                    bar.set_postfix(loss=f"{np.mean(self.at.losses[-20:]):.4f}", refresh=False)
                if stop:
                    raise StopRequested
        self._check_ranks()
        return self._finished(epoch, first_step, batches)

    def _finished(self, epoch: int, first_step: int, batches: Prefetcher[Any]) -> Epoch:
        task = self.trainable
        correct = sum(task.communicator.gather(self.at.correct))
        samples = task.steps_per_epoch * task.recipe.batch_size
        scores = task.evaluate()
        mixed = [layer for layer in task.layers if len(layer.mixture.quantizers) > 1]
        return Epoch(
            epoch + 1,
            float(np.mean(self.at.losses)),
            task.recipe.learning_rate_at((self.at.step - 1) / task.steps),
            task.is_hard_at(first_step),
            scores.metric if scores.hard is not None else "",
            scores.hard,
            time.perf_counter() - self._started,
            scores.soft,
            correct / samples if task.correct() is not None else None,
            scores.top5,
            _temperature(mixed),
            {layer.name: tuple(float(a) for a in layer.attention()) for layer in mixed},
            round(batches.images_per_second, 1),
            round(batches.waited_seconds, 3),
        )

    def _step(self, batch: Dict[str, np.ndarray], guard: InterruptGuard) -> bool:
        """One step; whether the training shall stop after it."""
        task = self.trainable
        if self._on_step is not None:
            self._on_step(task, self.at.step)
        save = time.monotonic() - self._saved_time > self._save_seconds
        self._requests.data = np.array([guard.noted, save], np.float32)
        rate = task.recipe.learning_rate_at(self.at.step / task.steps)
        if task.begins_hard_at(self.at.step):
            task.begin_hard()
        self.at.losses.append(self._update(batch, rate, self.at.step, self._requests))
        self.at.correct += task.correct() or 0
        self.at.step += 1
        if self._events is not None:
            self._events.update(self.at)
        stop = guard.noted
        if task.communicator.size > 1:
            stop, save = (bool(request) for request in self._requests.data > 0)
        if save and not stop:
            self.save()
        return stop

    def _check_ranks(self) -> None:
        """Raise ParallelError unless all processes agree on all that is trained or cooled."""
        if self.trainable.communicator.size == 1:
            return
        named: Dict[str, Any] = {"step": np.float64(self.at.step)}
        for layer in self.trainable.layers:
            named.update({f"{layer.name}: {k}": v.d for k, v in layer.state.items()})
            if layer.chosen is not None:
                named[f"{layer.name}: what a budget chose"] = layer.chosen.d
            if layer.is_weight:
                named[f"{layer.name}: the weights"] = layer.weight.d
        # A float network has no such layers; all have parameters beside the weights.
        weights = {layer.weight_name for layer in self.trainable.layers}
        trained = self.trainable.solver.get_parameters().items()
        named.update({name: v.d for name, v in trained if name not in weights})
        check_equal(self.trainable.communicator, named)

    def metadata(self) -> Dict[str, Any]:
        """Where the training is, as JSON values."""
        scaler = self._update.scaler
        if self.at.losses:
            self.at.seconds = round(time.perf_counter() - self._started, 3)
        return {
            **self.trainable.identity(),
            **self.at.to_json(),
            "scaler": None if scaler is None else scaler.to_json(),
        }

    def failure(self, error: BaseException) -> Dict[str, Any]:
        """Where an error ended the training, as JSON values: for the folder of the run."""
        # Where an epoch has ended, its checkpoint could not be written.
        ended = not self.at.losses and self._saved_step != self.at.step
        return {
            "error": one_line(error),
            "step": self.at.step,
            "epoch": len(self.at.history) + (0 if ended else 1),
            "steps_per_epoch": self.trainable.steps_per_epoch,
            "losses": [float(loss) for loss in self.at.losses[-LOSSES_KEPT:]],
        }

    def save(self) -> None:
        """Write the checkpoint; all processes call it together.

        Raises:
            NonFiniteError: A parameter is NaN or infinite; the last checkpoint is kept.
        """
        comm = self.trainable.communicator
        correct = comm.gather(self.at.correct)
        self.at.skipped.update(gather_skipped(comm, self.trainable.data.skipped))
        if comm.rank == 0:
            arrays = {name: v.d for name, v in self.trainable.parameters().items()}
            check_arrays(arrays)
            if self._events is not None:
                self._events.flush()
            notes = {**self.metadata(), "correct": sum(correct)}
            write_checkpoint(self.checkpoint, arrays, self.trainable.solver, notes)
        # A process that goes on and fails would end the first one while it is writing.
        # So all of them wait until the file is complete.
        comm.barrier()
        self._saved_step = self.at.step
        self._saved_time = time.monotonic()

    def resume(self) -> None:
        """Take over the checkpoint.

        Raises:
            CheckpointError: There is none, it is damaged, or of another
                recipe, file or data; says what differs.
        """
        checkpoint = read_checkpoint(self.checkpoint)
        notes = checkpoint.notes
        for key, wanted in self.trainable.identity().items():
            found = notes.get(key)
            if key == "recipe" and isinstance(found, dict) and "data" in found:
                # Their files may have been moved, and called otherwise.
                found, wanted = without_names(found), without_names(wanted)
            if found != wanted:
                what = difference(found, wanted, key)
                if key == "data":
                    what = f"{Path(self.trainable.source).name}: {what}"
                raise CheckpointError(f"{self.checkpoint}: belongs to another training: {what}")
        parameters = self.trainable.parameters()
        odd = sorted(set(parameters) ^ set(checkpoint.arrays))
        if odd:
            raise CheckpointError(f"{self.checkpoint}: has other parameters: {odd[0]}")
        for name, array in checkpoint.arrays.items():
            parameters[name].d = array
        checkpoint.solver.restore(self.trainable.solver)
        self.at = Progress.from_json(notes)
        self._saved_step = self.at.step
        if self.trainable.communicator.rank > 0:
            # Those of all processes are counted by the first one.
            self.at.correct = 0
        if self._update.scaler is not None and notes["scaler"]:
            self._update.scaler = LossScaler(**notes["scaler"])
        if (
            isinstance(self.trainable.solver, AttachedSolver)
            and self.trainable.solver.annealer is not None
        ):
            self.trainable.solver.annealer.apply()


def gather_skipped(communicator: Communicator, skipped: Mapping[str, str]) -> Dict[str, str]:
    """Files that were skipped, and why, in all processes."""
    return {path: why for own in communicator.gather(dict(skipped)) for path, why in own.items()}


def _temperature(layers: List[QuantizedTensor]) -> Optional[float]:
    found = next(
        (layer.state["temperature"] for layer in layers if "temperature" in layer.state), None
    )
    return None if found is None else float(found.d[0])
