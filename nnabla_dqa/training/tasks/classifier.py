"""A model of this package as a job for the training loop."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any, Dict, List, Mapping, NamedTuple, Optional, Tuple

import nnabla as nn
import nnabla.functions as F
import numpy as np

from nnabla_dqa._util.devices import float_context
from nnabla_dqa.data import DataError
from nnabla_dqa.data.prefetch import Prefetcher
from nnabla_dqa.distributed import Communicator, given_or_single
from nnabla_dqa.distributed.nccl import synchronized_batch_normalization
from nnabla_dqa.layers.scopes import hard
from nnabla_dqa.models import build
from nnabla_dqa.quantization.graph_ops import Variable
from nnabla_dqa.recipes.checks import RecipeError
from nnabla_dqa.recipes.experiment import Experiment
from nnabla_dqa.regularization import regularizer
from nnabla_dqa.solver.attached import attach
from nnabla_dqa.solver.finite_check import NonFiniteError
from nnabla_dqa.training.tasks.images import normalized, open_images
from nnabla_dqa.training.tasks.inputs import check_labels
from nnabla_dqa.training.tasks.sources import fingerprint
from nnabla_dqa.training.trainable import Job, Scores

EVALUATION_BATCH = 250
MANY_CLASSES = 100
"""From so many classes on, top-5 accuracy is measured too."""


class Graph(NamedTuple):
    """An input, (B, 3, H, W) or with ``channel_last`` (B, H, W, 3), and the logits made of it."""

    x: Variable
    logits: Variable
    channel_last: bool = False


class Classifier(Job):
    """A classifier, float, plain, Binary-Relax or DQA, with images to learn from.

    Args:
        experiment: What is trained, on what, and how.
        communicator: The processes that train together; each takes its part
            of every mini-batch. Needed where a launcher started several.

    With several processes each normalizes by the batch statistics of its own
    part of the mini-batch. The running statistics are averaged over the
    processes in every update, so that all have the same parameters.
    ``sync_normalization`` takes the statistics of the whole mini-batch instead,
    on GPUs that communicate over NCCL.

    Raises:
        DataError: The images cannot be opened, or are not of a fitting shape.
        ParallelError: ``sync_normalization`` without NCCL.
        RecipeError: The batch size cannot be shared among the processes.
    """

    def __init__(self, experiment: Experiment, communicator: Optional[Communicator] = None) -> None:
        self.settings = self.experiment = experiment
        self.communicator = given_or_single(communicator)
        self.source = experiment.data.source
        self.workers = experiment.data.workers
        size = experiment.model.image_size
        self.data, self.validation = open_images(experiment.data, size, experiment.seed)
        self._check_data()
        cpu = all(name.startswith("cpu") for name in nn.get_current_context().backend)
        if experiment.model.channel_last and cpu:
            raise RecipeError(
                "key 'model.channel_last' is for GPUs; the CPU computes channel first"
            )
        self.scope: Any = OrderedDict()
        # Solver, loss and quantizers in float32, whatever the layers compute in.
        self._float = float_context(nn.get_current_context())
        self._rng = np.random.RandomState(experiment.seed)
        with nn.parameter_scope("", self.scope), nn.auto_forward(False):
            self._build()
            with nn.context_scope(self._float):
                self.solver = self._solver()
        self._fingerprint = fingerprint(self.data)

    def _check_data(self) -> None:
        shapes = self.data.shapes
        if set(shapes) != {"x", "y"} or len(shapes["x"]) != 3 or shapes["y"] != (1,):
            raise DataError(
                f"{self.source}: has columns {shapes}; images x of shape (3, H, W) and labels y of "
                f"shape (1,) are needed"
            )
        if shapes["x"][0] != 3:
            raise DataError(f"{self.source}: images have {shapes['x'][0]} channels, 3 are needed")
        if self.validation.shapes != shapes:
            raise DataError(
                f"{self.source}: validation has {self.validation.shapes}, training has {shapes}"
            )
        size, processes = self.experiment.batch_size, self.communicator.size
        if size % processes:
            raise RecipeError(
                f"key 'batch_size' must be a multiple of the number of processes, {processes}; got "
                f"{size}"
            )
        if size > len(self.data):
            raise DataError(
                f"{self.source}: has {len(self.data)} training samples, fewer than "
                f"batch_size={size}"
            )
        known, wanted = len(self.data.classes), self.experiment.model.classes
        if known > wanted:
            raise DataError(f"{self.source}: has {known} classes, key 'model.classes' is {wanted}")

    def _build(self) -> None:
        batch = self.experiment.batch_size // self.communicator.size
        self._training = self._graph(batch, True)
        with nn.context_scope(self._float):
            self._labels = nn.Variable((batch, 1))
            entropy = F.softmax_cross_entropy(self._training.logits, self._labels)
            self.loss = F.mean(entropy)
            mixture = self.experiment.mixture()
            if self.experiment.method == "DQA" and self.experiment.lambda_:
                self.loss = F.add2(self.loss, regularizer(self.experiment.lambda_))
        self._training.logits.persistent = True
        size = min(EVALUATION_BATCH, len(self.validation))
        with hard():
            self.deployable = self._graph(size, False)
        self._soft = None
        if mixture is not None and len(mixture.quantizers) > 1:
            self._soft = self._graph(size, False)

    def _graph(self, batch: int, train: bool, last: Optional[bool] = None) -> Graph:
        recipe = self.experiment
        channels, height, width = self.data.shapes["x"]
        if last is None:
            last = recipe.model.channel_last
        x = nn.Variable(
            (batch, height, width, channels) if last else (batch, channels, height, width)
        )
        model = recipe.model
        logits = build(
            model.name,
            normalized(x, recipe.data.mean, recipe.data.std, 3 if last else 1),
            model.classes,
            train,
            recipe.mixture(),
            model.width,
            last,
            model.stem_stride,
            self._normalization(),
            self._rng,
        )
        return Graph(x, logits, last)

    def _normalization(self) -> Any:
        if not self.experiment.sync_normalization or self.communicator.size == 1:
            return None
        return synchronized_batch_normalization(self.communicator)

    def _solver(self) -> Any:
        experiment = self.experiment
        solver = experiment.make_solver()
        mixture = experiment.mixture()
        if mixture is not None:
            schedule = None
            if len(mixture.quantizers) > 1:
                schedule = experiment.make_schedule(mixture.mixing, self.steps_per_epoch)
            solver = attach(solver, schedule, attention_lr=experiment.attention_lr, restart=True)
        solver.set_parameters(nn.get_parameters())
        return solver

    def fill(self, batch: Mapping[str, np.ndarray]) -> None:
        check_labels("y", batch["y"], self.experiment.model.classes)
        self._put(self._training, batch["x"])
        self._labels.d = batch["y"]

    def _put(self, graph: Graph, images: np.ndarray) -> None:
        x = graph.x
        if graph.channel_last:
            images = images.transpose(0, 2, 3, 1)
        if len(images) < x.shape[0]:
            # The last mini-batch of an evaluation; its surplus is not counted.
            missing = x.shape[0] - len(images)
            images = np.concatenate([images, np.repeat(images[-1:], missing, axis=0)])
        x.d = images

    def hits(self) -> Optional[int]:
        return int(np.sum(self._training.logits.d.argmax(1) == self._labels.d[:, 0]))

    def evaluate(self) -> Scores:
        soft = None if self.is_soft_over() else self._soft
        counts = self.count_hits([self.deployable, *([soft] if soft else [])])
        samples = counts[0]
        many = self.experiment.model.classes >= MANY_CLASSES
        return Scores(
            "accuracy",
            counts[1] / samples,
            counts[3] / samples if soft else None,
            counts[2] / samples if many else None,
        )

    def is_soft_over(self) -> bool:
        """Whether every layer uses its lowest bit width alone, so that soft equals hard."""
        return all(layer.is_hard for layer in self.layers)

    def count_hits(self, graphs: List[Graph]) -> List[int]:
        """Samples seen, then for each graph how many are right, and within the five highest."""
        comm = self.communicator
        size = graphs[0].x.shape[0]
        rows = np.arange(len(self.validation))[comm.rank :: comm.size]
        parts = [rows[i : i + size] for i in range(0, len(rows), size)]
        counts = [0] * (1 + 2 * len(graphs))
        with Prefetcher(self.validation.batch, parts, self.workers) as batches:
            for batch in batches:
                count = len(batch["y"])
                if not count:
                    continue
                check_labels("y", batch["y"], self.experiment.model.classes)
                counts[0] += count
                for i, graph in enumerate(graphs):
                    self._put(graph, batch["x"])
                    graph.logits.forward(clear_buffer=True)
                    first, five = _ranks(graph.logits.d[:count], batch["y"])
                    counts[1 + 2 * i] += first
                    counts[2 + 2 * i] += five
        totals = [sum(values) for values in zip(*comm.gather(counts))]
        if not totals[0]:
            raise DataError(f"{self.source}: no validation image can be read")
        return totals

    def to_deploy(self) -> Tuple[Any, Graph]:
        """Scope and evaluation graph of the trained network with channels first.

        NNabla's CPU convolution takes no other, and what is deployed shall run anywhere.
        """
        if not self.experiment.model.channel_last:
            return self.scope, self.deployable
        scope: Any = OrderedDict()
        with nn.parameter_scope("", scope), nn.context_scope(self._float), nn.auto_forward(False):
            with hard():
                graph = self._graph(self.deployable.x.shape[0], False, last=False)
            known = nn.get_parameters(grad_only=False)
            for name, v in self.parameters().items():
                # Kernels (out, *kernel, in) and normalization (1, 1, 1, C) alike.
                array = v.d.transpose(0, 3, 1, 2) if v.ndim == 4 else v.d
                if name not in known:
                    new = nn.Variable(array.shape, need_grad=False)
                    nn.parameter.set_parameter(name, new)
                    known[name] = new
                known[name].d = array
        return scope, graph

    def parameters(self) -> Dict[str, Variable]:
        with nn.parameter_scope("", self.scope):
            return dict(nn.get_parameters(grad_only=False))

    def identity(self) -> Dict[str, Any]:
        half = nn.get_current_context().backend != self._float.backend
        return {
            "recipe": self.experiment.decisive(),
            "type_config": "half" if half else "float",
            "data": self._fingerprint,
        }


def _ranks(logits: np.ndarray, labels: np.ndarray) -> Tuple[int, int]:
    """How many labels have the highest logit, and how many one of the five highest.

    Of equal logits the first counts as the highest, so that a net whose output
    is constant gains nothing.
    """
    if not np.isfinite(logits).all():
        raise NonFiniteError("the network's output is NaN or infinite on the validation data")
    number = labels[:, 0].astype(np.int64)
    own = logits[np.arange(len(logits)), number][:, None]
    before = np.arange(logits.shape[1]) < number[:, None]
    rank = ((logits > own) | (before & (logits == own))).sum(axis=1)
    return int((rank == 0).sum()), int((rank < 5).sum())
