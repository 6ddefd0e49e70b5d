"""A model of this package as the network of a training."""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path
from typing import Any, Dict, List, Mapping, NamedTuple, Optional, Sequence, Tuple

import nnabla as nn
import nnabla.functions as F
import numpy as np

from nnabla_dqa._util.devices import float_context
from nnabla_dqa.data import DataError
from nnabla_dqa.distributed import Communicator
from nnabla_dqa.distributed.nccl import synchronized_batch_normalization
from nnabla_dqa.graph.convert import convert
from nnabla_dqa.graph.deploy import deploy
from nnabla_dqa.graph.save import save_network
from nnabla_dqa.layers.scopes import choosing, hard
from nnabla_dqa.layers.tensors import find_quantized
from nnabla_dqa.models import build
from nnabla_dqa.models.pixels import normalized
from nnabla_dqa.quantization.graph_ops import Variable
from nnabla_dqa.recipes.recipe import DISTILLATION, Recipe, RecipeError
from nnabla_dqa.training.result import Epoch
from nnabla_dqa.training.tasks.evaluation import Evaluation
from nnabla_dqa.training.tasks.initial import load_initial
from nnabla_dqa.training.tasks.inputs import Columns, Feed, Shape
from nnabla_dqa.training.tasks.losses import Logits, distance, named_loss, scored, taught
from nnabla_dqa.training.tasks.network import Network, Objective, Written, layer_notes
from nnabla_dqa.training.tasks.objective import make_metric
from nnabla_dqa.training.tasks.teacher import open_teacher

EVALUATION_BATCH = 250
_PLAIN_LOSS = "softmax_cross_entropy"
_OUTPUT = "the model's output"
"""To a teacher; no variable of an NNP is called so."""


class Graph(NamedTuple):
    """An input, (B, 3, H, W) or with ``channel_last`` (B, H, W, 3), and the logits made of it.

    ``images`` is the input with channels first.
    """

    x: Variable
    logits: Variable
    images: Variable
    channel_last: bool = False


class ModelNetwork(Network):
    """A classifier, float, plain, Binary-Relax or DQA.

    Args:
        recipe: Its model, quantizers and loss count.
        communicator: For batch statistics of all processes.
        max_bytes: What the teacher may unpack to.

    Raises:
        RecipeError: The model is for a GPU, and this is a CPU.
    """

    def __init__(
        self, recipe: Recipe, communicator: Communicator, max_bytes: Optional[int] = None
    ) -> None:
        assert recipe.model is not None
        self.recipe, self.model = recipe, recipe.model
        self.communicator = communicator
        self.image_size = self.model.image_size
        self.messages: List[str] = []
        self.teacher = open_teacher(recipe, max_bytes=max_bytes)
        context = nn.get_current_context()
        if self.model.channel_last and all(n.startswith("cpu") for n in context.backend):
            raise RecipeError(
                "key 'model.channel_last' is for GPUs; the CPU computes channel first"
            )
        # Solver, loss and quantizers in float32, whatever the layers compute in.
        self._float = float_context(context)
        self.scope: Any = OrderedDict()
        self._rng = np.random.RandomState(recipe.seed)
        self._shape: Shape = ()
        self._column = "x"

    def objective(self, shapes: Mapping[str, Shape], batch_size: int, validation: int) -> Objective:
        data, kind = self.recipe.data, self.recipe.loss or _PLAIN_LOSS
        columns = Columns(shapes, data, ["x"], {})
        self._column = (data.inputs or {}).get("x", "x")
        self._shape = shapes.get(self._column, ())
        if len(self._shape) != 3 or self._shape[0] != 3:
            raise DataError(
                f"{data.train}: has columns {dict(shapes)}; images {self._column} of shape "
                f"(3, H, W) are needed"
            )
        training = self.graph(batch_size, True)
        training.logits.persistent = True
        if self.recipe.init is not None:
            load_initial(self.recipe.init, self.scope)
        feeds, given = [self._feed(training)], {"x": training.images}
        with nn.context_scope(self._float):
            logits = Logits(training.logits, "softmax")
            if kind == DISTILLATION:
                assert self.teacher is not None
                target = columns.default_target if columns.default_target in shapes else ""
                loss = distance({_OUTPUT: logits}, given, self.teacher, self.recipe, batch_size)
            else:
                target = columns.target(feeds)
                loss, label = named_loss(kind, logits, training.logits)
                classes = self.model.classes if kind == _PLAIN_LOSS else 0
                feeds.append(columns.feed_column(target, label, classes, "the loss"))
                compared = {_OUTPUT: scored(kind, logits, training.logits)}
                loss = taught(loss, compared, given, self.teacher, self.recipe, batch_size)
        size = max(1, min(EVALUATION_BATCH, validation))
        with hard():
            self.deployable = self.graph(size, False)
        self.mixtures = {layer.name: layer.mixture for layer in find_quantized()}
        relaxed = any(m.is_mixed or m.switches for m in self.mixtures.values())
        metric = make_metric(shapes.get(target), self.deployable.logits)

        def evaluation(graph: Graph) -> Evaluation:
            return Evaluation((self._feed(graph),), graph.logits, metric, target)

        return Objective(
            loss,
            tuple(feeds),
            evaluation(self.deployable),
            evaluation(self.graph(size, False)) if relaxed else None,
            training.logits if kind == _PLAIN_LOSS else None,
        )

    def _feed(self, graph: Graph) -> Feed:
        return Feed(self._column, graph.x, 0, graph.channel_last)

    def graph(self, batch: int, train: bool, last: Optional[bool] = None) -> Graph:
        """The network for mini-batches of ``batch`` images."""
        channels, height, width = self._shape
        last = self.model.channel_last if last is None else last
        x = nn.Variable(
            (batch, height, width, channels) if last else (batch, channels, height, width)
        )
        images = F.transpose(x, (0, 3, 1, 2)) if last else x
        data, model, mixture = self.recipe.data, self.model, self.recipe.mixture()
        # One mixture for all layers is built right away, anything else by converting the float net.
        by_layer = bool(self.recipe.rules) or self.recipe.activations is not None
        if mixture is not None:
            by_layer = by_layer or any(q.axis is not None for q in mixture.quantizers)
        with choosing(self.recipe.budget is not None):
            logits = build(
                model.name,
                normalized(x, data.mean, data.std, 3 if last else 1),
                model.classes,
                train,
                None if by_layer else mixture,
                model.width,
                last,
                model.stem_stride,
                self._normalization(),
                self._rng,
            )
            if by_layer:
                logits = convert(logits, self.recipe.quantization)
        return Graph(x, logits, images, last)

    def _normalization(self) -> Any:
        if not self.recipe.sync_normalization or self.communicator.size == 1:
            return None
        return synchronized_batch_normalization(self.communicator)

    def to_estimate(
        self, shapes: Mapping[str, Shape], batch_size: int
    ) -> Tuple[Sequence[Feed], Variable]:
        with hard():
            graph = self.graph(batch_size, True)
        return [self._feed(graph)], graph.logits

    def write(self, target: Optional[Path], folder: Optional[Path], epochs: List[Epoch]) -> Written:
        scope, graph = self.to_deploy()
        names = {"x": graph.x}, {"y": graph.logits}
        with nn.parameter_scope("", scope):
            trained = [v for name, v in nn.get_parameters().items() if "/dqa/" not in name]
            notes: Dict[str, Any] = {"parameters": sum(v.size for v in trained)}
            if target is None:
                assert folder is not None
                target = folder / ("deployed.nnp" if self.mixtures else "network.nnp")
            if not self.mixtures:
                size = save_network(target, *names, network=self.model.name)
                return Written(
                    target, target, {**notes, "file_bytes": size, "bits_per_weight": 32.0}
                )
            deployed = deploy(target, *names, network=self.model.name)
        return Written(target, target, {**notes, **layer_notes(deployed)})

    def to_deploy(self) -> Tuple[Any, Graph]:
        """Scope and evaluation graph of the trained network with channels first.

        NNabla's CPU convolution takes no other, and what is deployed shall run anywhere.
        """
        if not self.model.channel_last:
            return self.scope, self.deployable
        scope: Any = OrderedDict()
        with nn.parameter_scope("", self.scope):
            trained = nn.get_parameters(grad_only=False)
        with nn.parameter_scope("", scope), nn.context_scope(self._float), nn.auto_forward(False):
            with hard():
                graph = self.graph(self.deployable.x.shape[0], False, last=False)
            known = nn.get_parameters(grad_only=False)
            for name, v in trained.items():
                # Kernels (out, *kernel, in) and normalization (1, 1, 1, C) alike.
                array = v.d.transpose(0, 3, 1, 2) if v.ndim == 4 else v.d
                if name not in known:
                    new = nn.Variable(array.shape, need_grad=False)
                    nn.parameter.set_parameter(name, new)
                    known[name] = new
                known[name].d = array
        return scope, graph
