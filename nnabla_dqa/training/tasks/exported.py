"""An exported file in its own engine, beside the NNP that it was made from."""

from __future__ import annotations

import math
from typing import Container, Iterable, NamedTuple, Optional

import nnabla as nn
import numpy as np

from nnabla_dqa._util.files import PathLike
from nnabla_dqa.export.errors import ExportError
from nnabla_dqa.export.metadata import read_activations
from nnabla_dqa.export.onnx.run import OnnxSession
from nnabla_dqa.nnp.file import NetworkFile
from nnabla_dqa.nnp.live import Program
from nnabla_dqa.recipes.parts import DataRecipe
from nnabla_dqa.training.tasks.evaluation import score_sums
from nnabla_dqa.training.tasks.file_scores import open_for
from nnabla_dqa.training.tasks.inputs import fill
from nnabla_dqa.training.tasks.objective import make_evaluation
from nnabla_dqa.training.tasks.plan import find_run

TOLERANCE = 1e-4
"""Of outputs, relative to the largest: what the order of float32 sums may change in deep nets."""
SCORE_TOLERANCE = 1e-3
"""Of accuracy where activations are quantized: a last digit decides there between two levels."""
CLASS_TOLERANCE = 1e-2
"""Of the share of samples that may get another class then, most of them undecided ones."""


class Verification(NamedTuple):
    """What :func:`verify_export` found; ``str()`` of it is a line.

    Attributes:
        path: The exported file.
        engine: What ran it.
        samples: So many were compared.
        difference: The largest of any output, relative to the largest output.
        same_class: The share of samples whose largest output is the same; None
            if the output is no set of classes.
        metric: ``"accuracy"``, ``"mean squared error"``, or '' without targets.
        score: Of the exported file.
        nnp_score: Of the NNP.
        quantized_activations: Whether the NNP has some.
    """

    path: str
    engine: str
    samples: int
    difference: float
    same_class: Optional[float]
    metric: str
    score: float
    nnp_score: float
    quantized_activations: bool = False

    @property
    def ok(self) -> bool:
        """Whether both give the same, as far as float32 can.

        ``difference`` is at most :data:`TOLERANCE`; with quantized activations it is
        enough that accuracies differ by at most :data:`SCORE_TOLERANCE` and classes for at
        most :data:`CLASS_TOLERANCE` of the samples.
        """
        if self.difference <= TOLERANCE or not self.quantized_activations:
            return self.difference <= TOLERANCE
        is_scored = self.metric == "accuracy"
        if self.same_class is None:
            return is_scored and abs(self.score - self.nnp_score) <= SCORE_TOLERANCE
        agree = 1 - self.same_class <= CLASS_TOLERANCE
        return agree and not (is_scored and abs(self.score - self.nnp_score) > SCORE_TOLERANCE)

    def __str__(self) -> str:
        parts = [f"outputs differ by at most {self.difference:.1e} of the largest"]
        if self.same_class is not None:
            same = round(self.same_class * self.samples)
            parts.append(f"same class for {same:,} of {self.samples:,}")
        if self.metric:
            parts.append(f"{self.metric} {self.score:.4f}, of the .nnp {self.nnp_score:.4f}")
        verdict = "verified" if self.ok else "NOT the same"
        return (
            f"{self.path}: {verdict} on {self.samples:,} samples in {self.engine}: "
            f"{'; '.join(parts)}"
        )


def verify_export(
    nnp: PathLike,
    exported: PathLike,
    data: DataRecipe,
    batch_size: int = 100,
    network: Optional[str] = None,
    max_bytes: Optional[int] = None,
) -> Verification:
    """Run an ONNX file in ONNX Runtime over data, and compare with the NNP in NNabla.

    Args:
        nnp: What the file was exported from.
        exported: The ONNX file.
        data: As of :func:`nnabla_dqa.evaluate_file`.
        batch_size: Samples at a time.
        network: Which network of the NNP was exported; default: that of the first executor.
        max_bytes: What the NNP may unpack to.

    Raises:
        NNPError, DataError, RecipeError: As of ``evaluate_file``.
        ExportError: ONNX Runtime does not load the file, or it has inputs or
            outputs that the NNP has not.
    """
    file = NetworkFile.read(nnp, max_bytes)
    engine = OnnxSession(exported)
    run = find_run(file, network)
    samples = open_for(file, data, "validation")
    if data.limit is not None:
        samples = samples.take(min(data.limit, len(samples)))
    task, built = make_evaluation(Program(file), run, data, samples.shapes, batch_size)
    _check_names(exported, nnp, "input", engine.inputs, built.inputs)
    _check_names(exported, nnp, "output", engine.outputs, built.variables)
    outputs = {name: built.variables[name] for name in engine.outputs}
    tallies = {name: _Tally() for name in outputs}
    scores = np.zeros(2)
    for start in range(0, len(samples), batch_size):
        batch = samples.batch(np.arange(start, min(start + batch_size, len(samples))))
        count = len(next(iter(batch.values())))
        fill(task.feeds, batch)
        nn.forward_all(list(outputs.values()))
        found = engine.run({name: v.d for name, v in built.inputs.items()})
        for name, v in outputs.items():
            tallies[name].add(found[name][:count], v.d[:count])
        if task.metric and run.output in outputs:
            both = (found[run.output], outputs[run.output].d)
            target = batch[task.target]
            scores += [score_sums(task.metric, v, target, task.threshold)[0] for v in both]
    first = tallies.get(run.output, next(iter(tallies.values())))
    score, nnp_score = (scores / max(1, first.samples)).tolist()
    return Verification(
        str(exported),
        f"ONNX Runtime {engine.version}",
        first.samples,
        max(tally.difference for tally in tallies.values()),
        first.same_class,
        task.metric if run.output in outputs else "",
        score,
        nnp_score,
        bool(read_activations(file.archive)),
    )


class _Tally:
    """How far two series of arrays are apart."""

    def __init__(self) -> None:
        self.samples = 0
        self._apart = self._largest = 0.0
        self._classes = self._same = 0

    def add(self, found: np.ndarray, wanted: np.ndarray) -> None:
        """Count a mini-batch."""
        count = len(wanted)
        flat = [v.reshape(count, -1).astype(np.float64) for v in (found, wanted)]
        is_finite = np.isfinite(flat[0]).all()
        apart = float(np.abs(flat[0] - flat[1]).max()) if is_finite else math.inf
        self._apart = max(self._apart, apart)
        self._largest = max(self._largest, float(np.abs(flat[1]).max()))
        self._classes = flat[0].shape[1]
        self._same += int(np.sum(flat[0].argmax(axis=1) == flat[1].argmax(axis=1)))
        self.samples += count

    @property
    def difference(self) -> float:
        """The largest, relative to the largest value."""
        return self._apart / max(self._largest, float(np.finfo(np.float32).tiny))

    @property
    def same_class(self) -> Optional[float]:
        """The share of samples whose largest value is at the same place."""
        return self._same / self.samples if self._classes > 1 else None


def _check_names(
    exported: PathLike, nnp: PathLike, kind: str, names: Iterable[str], known: Container[str]
) -> None:
    for name in names:
        if name not in known:
            raise ExportError(f"{exported}: its {kind} {name} is not in {nnp}")
