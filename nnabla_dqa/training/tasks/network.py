"""What a training needs from where its graphs come from: an NNP, or a model of this package."""

from __future__ import annotations

import abc
import dataclasses
from pathlib import Path
from typing import Any, Dict, List, Mapping, NamedTuple, Optional, Sequence, Tuple

from nnabla_dqa.mixing import Mixture
from nnabla_dqa.quantization.graph_ops import Variable
from nnabla_dqa.training.result import Epoch
from nnabla_dqa.training.tasks.evaluation import Evaluation
from nnabla_dqa.training.tasks.inputs import Feed, Shape
from nnabla_dqa.training.tasks.losses import Teacher


@dataclasses.dataclass(frozen=True)
class Objective:
    """The graphs of a training.

    Attributes:
        loss: What is lowered, shape (), without the regularizer.
        feeds: What fills its inputs.
        hard: To evaluate with the target quantizers alone.
        soft: To evaluate with the mixtures as they are trained, or None.
        scores: The scores in training, by class, whose highest is compared
            with the labels of ``feeds[-1]``; None: not counted.
    """

    loss: Variable
    feeds: Tuple[Feed, ...]
    hard: Evaluation
    soft: Optional[Evaluation] = None
    scores: Optional[Variable] = None


class Written(NamedTuple):
    """The files that a training wrote: trained, deployed, and its part of ``result.json``."""

    trained: Path
    deployed: Optional[Path]
    notes: Dict[str, Any]


class Network(abc.ABC):
    """Where the graphs of a training come from.

    Attributes:
        scope: The parameter scope.
        mixtures: What the layers mix, by their names.
        image_size: Height and width of the images it was made for.
        identity: JSON by which a checkpoint recognises the network, or None.
        teacher: What it learns from, or None.
        messages: What the user should know.
    """

    scope: Any
    mixtures: Dict[str, Mixture]
    image_size: int = 0
    identity: Optional[Any] = None
    teacher: Optional[Teacher] = None
    messages: List[str]

    @abc.abstractmethod
    def objective(self, shapes: Mapping[str, Shape], batch_size: int, validation: int) -> Objective:
        """Build the graphs.

        Args:
            shapes: Of one sample, for each column of the data.
            batch_size: Samples of a step in this process.
            validation: Samples there are to evaluate.
        """

    @abc.abstractmethod
    def to_estimate(
        self, shapes: Mapping[str, Shape], batch_size: int
    ) -> Tuple[Sequence[Feed], Variable]:
        """A graph on batch statistics with the target quantizers alone: inputs and output."""

    @abc.abstractmethod
    def write(self, target: Optional[Path], folder: Optional[Path], epochs: List[Epoch]) -> Written:
        """Write the trained network to ``target`` and deploy it into ``folder``.

        A model is deployed to ``target``, if that is given. One of both is.
        """


def layer_notes(deployed: Any) -> Dict[str, Any]:
    """The part of ``result.json`` about a deployed file."""
    return {
        "file_bytes": deployed.file_bytes,
        "bits_per_weight": deployed.bits_per_weight,
        "layers": [
            {
                "name": row.layer,
                "weights": row.weights,
                "quantizer": row.quantizer.name,
                "values": row.values,
                "attention": list(row.attention),
            }
            for row in deployed.layers
        ],
    }
