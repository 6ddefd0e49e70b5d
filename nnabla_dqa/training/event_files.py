"""Curves of a training as TensorBoard event files, while it goes on.

They need tensorboardX: ``pip install 'nnabla_dqa[monitor]'``.
"""

from __future__ import annotations

import math
import re
import socket
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Dict, List, Mapping, Optional, Sequence, Tuple, Type

import nnabla as nn
import numpy as np

from nnabla_dqa._util.files import PathLike
from nnabla_dqa.budget.state import budget_of, price_of
from nnabla_dqa.layers.report import short_names
from nnabla_dqa.layers.tensors import QuantizedTensor
from nnabla_dqa.regularization import PenaltyValue
from nnabla_dqa.training.monitors import SERIES
from nnabla_dqa.training.result import Epoch
from nnabla_dqa.training.state import Progress
from nnabla_dqa.training.trainable import Trainable

POINTS = 1000
"""TensorBoard shows no more of one curve, unless it is told to."""
FLUSH_SECONDS = 5.0
"""Longest time until what was written can be seen."""
_NAME = "events.out.tfevents."
_SUFFIX = ".nnabla_dqa"


class TensorboardMissingError(ImportError, ValueError):
    """tensorboardX is not installed; the message says what to install."""


def check_tensorboard() -> None:
    """Raise TensorboardMissingError if there is no tensorboardX."""
    try:
        import tensorboardX  # noqa: F401
    except ImportError as error:
        raise TensorboardMissingError(
            f"TensorBoard event files need the package tensorboardX, which cannot be imported "
            f"({error}): pip install 'nnabla_dqa[monitor]'"
        ) from None


def event_files(folder: PathLike) -> List[Path]:
    """The event files that trainings of this package wrote into a folder, oldest first."""
    return sorted(Path(folder).glob(f"{_NAME}*{_SUFFIX}"))


class EventFiles:
    """Writes one event file in ``folder`` from a position of a training to its end.

    After an update, of at most :data:`POINTS` or so over the whole training: the loss
    (the mean over the updates of this epoch since the point before), the learning rate, and of
    layers that mix quantizers attention, temperature, the penalty in the loss and
    whether the hard phase has begun. After an epoch what
    :class:`~nnabla_dqa.training.monitors.Monitors` writes. The step of all is the number of
    updates done.

    A training that was stopped goes on in a new file. It begins with the mark by which
    readers know that whatever other files of the folder have from that step on is superseded.

    Args:
        folder: Made if it is not there.
        trainable: What is trained.
        at: Where it begins. What came before is in the folder's other files; if there
            are none, the new one begins with the epochs done.

    Raises:
        TensorboardMissingError: tensorboardX is not installed.
        OSError: The file cannot be written.
    """

    def __init__(self, folder: PathLike, trainable: Trainable, at: Progress) -> None:
        check_tensorboard()
        self._trainable = trainable
        self._interval = math.ceil(trainable.steps / POINTS)
        self._attention = Attention([layer for layer in trainable.layers if layer.mixture.is_mixed])
        self._tags = [_tags(layer) for layer in self._attention.layers]
        with nn.parameter_scope("", trainable.scope):
            self._penalty = PenaltyValue(trainable.strength) if trainable.strength else None
        schedule = trainable.schedule if self._attention.layers else None
        # The last update before the hard phase, and its first one.
        self._changes = () if schedule is None else (schedule.soft_steps, schedule.soft_steps + 1)
        Path(folder).mkdir(parents=True, exist_ok=True)
        others = event_files(folder)
        self._writer = _Writer(Path(folder), others)
        # Within an epoch the last update's values can be written again. At its end those of
        # the epoch belong to the same step, and stay.
        within = bool(at.losses)
        self._writer.begin(at.step if within else at.step + 1)
        if self._tags:
            self._writer.chart("attention", self._attention.layers, self._tags)
        for epoch in [] if others else at.history:
            learned = [np.array(epoch.attention[k.name]) for k in self._attention.layers]
            step = epoch.epoch * trainable.steps_per_epoch
            self._writer.write(step, self._of_layers(learned, epoch.temperature))
            self.epoch(epoch)
        if within:
            self.update(at)

    def update(self, at: Progress) -> None:
        """Note the values after an update."""
        step, length = at.step, self._trainable.steps_per_epoch
        if step % self._interval and step % length and step not in self._changes:
            return
        # Points stand at multiples of the interval, changes and ends of epochs.
        starts = ((step - 1) // n * n for n in (length, self._interval))
        before = max(*starts, *(change for change in self._changes if change < step))
        values = {
            "training/loss": float(np.mean(at.losses[-(step - before) :])),
            "training/learning_rate": self._rate(step),
        }
        if self._attention.layers:
            learned, used = self._attention.values()
            values.update(self._of_layers(learned, _temperature(self._attention.layers)))
            values["training/hard_phase"] = float(self._trainable.is_hard_at(step - 1))
            if self._penalty is not None:
                values["training/penalty"] = self._penalty.of(used)
            if budget_of(self._trainable.scope) is not None:
                values["training/price"] = float(price_of(self._trainable.scope).d[0, 0])
        self._writer.write(step, values)

    def epoch(self, epoch: Epoch) -> None:
        """Note the values of an epoch."""
        found = {f"epoch/{name.replace(' ', '_')}": read(epoch) for name, read in SERIES.items()}
        values = {name: value for name, value in found.items() if value is not None}
        self._writer.write(epoch.epoch * self._trainable.steps_per_epoch, values)

    def flush(self) -> None:
        """Bring everything to the disk: what a checkpoint holds must be there before it."""
        self._writer.flush()

    def __enter__(self) -> EventFiles:
        return self

    def __exit__(
        self,
        kind: Optional[Type[BaseException]],
        error: Optional[BaseException],
        trace: Optional[TracebackType],
    ) -> None:
        self._writer.close()

    def _rate(self, step: int) -> float:
        trainable = self._trainable
        return trainable.recipe.learning_rate_at((step - 1) / trainable.steps)

    def _of_layers(
        self, learned: Sequence[np.ndarray], temperature: Optional[float]
    ) -> Dict[str, float]:
        values = {
            tag: float(a) for tags, row in zip(self._tags, learned) for tag, a in zip(tags, row)
        }
        if temperature is not None:
            values["training/temperature"] = temperature
        return values


class Attention:
    """The coefficients of several layers as numbers, computed by one graph that is built once.

    They are those of :meth:`~nnabla_dqa.layers.tensors.QuantizedTensor.attention` at a
    fraction of its time.

    Args:
        layers: Each mixes quantizers.
    """

    def __init__(self, layers: Sequence[QuantizedTensor]) -> None:
        self.layers = layers
        self._copies: List[Tuple[Any, Any]] = []
        self._context = nn.Context(["cpu:float"])
        with nn.context_scope(self._context), nn.auto_forward(False):
            self._outputs = [self._build(layer) for layer in layers]

    def _build(self, layer: QuantizedTensor) -> Any:
        mixture = layer.mixture
        arrays = {}
        for name in mixture.mixing.state(mixture.quantizers):
            arrays[name] = nn.Variable(layer.state[name].shape)
            self._copies.append((arrays[name], layer.state[name]))
        return mixture.mixing.coefficients(arrays, len(mixture.quantizers), mixture.target)

    def values(self) -> Tuple[List[np.ndarray], List[np.ndarray]]:
        """Of each layer what it has learned, and what it uses: one-hot once hard; shape (K,)."""
        # Reading alone: on a GPU the parameters stay where they are.
        for copy, parameter in self._copies:
            copy.d = parameter.data.get_data("r")
        with nn.context_scope(self._context):
            nn.forward_all(self._outputs)
        learned = [output.d.reshape(-1).copy() for output in self._outputs]
        hard = [layer.state["hard"].data.get_data("r") for layer in self.layers]
        return learned, [h.copy() if h.any() else a for h, a in zip(hard, learned)]


class _Writer:
    """One event file: records of protocol buffers, framed and checked by tensorboardX.

    Its own threaded writer is left out: it drops what is queued when a process is killed, and
    cannot say what has reached the disk.

    Args:
        folder: Of the file.
        others: Event files in it; the new one's name comes after theirs.
    """

    def __init__(self, folder: Path, others: Sequence[Path]) -> None:
        from tensorboardX import RecordWriter
        from tensorboardX.proto.event_pb2 import Event

        # Readers take the files of a folder in the order of their names. A clock may be set back.
        stamps = [int(path.name[len(_NAME) :].split(".")[0]) for path in others]
        stamp = max([int(time.time()), *stamps])
        host = socket.gethostname()
        self._event = Event
        self._file = RecordWriter(
            str((folder / f"{_NAME}{stamp:010d}.{len(others):04d}.{host}{_SUFFIX}").absolute())
        )
        self._flushed = 0.0

    def begin(self, step: int) -> None:
        """Say that whatever other files have from ``step`` on is superseded."""
        from tensorboardX.proto.event_pb2 import SessionLog

        self._add(file_version="brain.Event:2")
        self._add(step=step, session_log=SessionLog(status=SessionLog.START))
        self.flush()

    def chart(
        self, title: str, layers: Sequence[QuantizedTensor], tags: Sequence[Sequence[str]]
    ) -> None:
        """Ask for one chart a layer, of all its tags."""
        from tensorboardX.summary import custom_scalars

        charts = {
            layer.name: ["Multiline", [f"^{re.escape(tag)}$" for tag in own]]
            for layer, own in zip(layers, tags)
        }
        self._add(summary=custom_scalars({title: charts}))

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Add values of one step, by their tags."""
        pairs = [{"tag": tag, "simple_value": value} for tag, value in values.items()]
        self._add(step=step, summary={"value": pairs})
        if time.monotonic() - self._flushed > FLUSH_SECONDS:
            self.flush()

    def _add(self, **fields: Any) -> None:
        self._file.write(self._event(wall_time=time.time(), **fields).SerializeToString())

    def flush(self) -> None:
        self._file.flush()
        self._flushed = time.monotonic()

    def close(self) -> None:
        self._file.flush()
        self._file.close()


def _tags(layer: QuantizedTensor) -> List[str]:
    """What the curves of a layer's attention are called, one for each quantizer."""
    names = short_names(layer.mixture)
    equal = len(set(names)) < len(names)
    return [f"attention/{layer.name}/{n}{f'.{k}' if equal else ''}" for k, n in enumerate(names)]


def _temperature(layers: Sequence[QuantizedTensor]) -> Optional[float]:
    state = next((k.state for k in layers if "temperature" in k.state), None)
    return None if state is None else float(state["temperature"].data.get_data("r")[0])
