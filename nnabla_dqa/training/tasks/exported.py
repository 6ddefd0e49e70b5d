"""An exported file in its own engine, beside the NNP that it was made from."""

from __future__ import annotations

import math
from typing import Container, Iterable, NamedTuple, Optional, Sequence, Tuple

import nnabla as nn
import numpy as np

from nnabla_dqa._util.files import PathLike
from nnabla_dqa.export.errors import ExportError
from nnabla_dqa.export.metadata import read_activations
from nnabla_dqa.export.onnx.packages import onnxruntime
from nnabla_dqa.export.onnx.run import OnnxSession
from nnabla_dqa.nnp.file import NetworkFile
from nnabla_dqa.nnp.live import Built, Program
from nnabla_dqa.recipes.parts import DataRecipe
from nnabla_dqa.solver.finite_check import NonFiniteError
from nnabla_dqa.training.tasks.evaluation import Evaluation, score_sums
from nnabla_dqa.training.tasks.file_scores import open_for
from nnabla_dqa.training.tasks.inputs import fill
from nnabla_dqa.training.tasks.objective import make_evaluation
from nnabla_dqa.training.tasks.plan import find_run
from nnabla_dqa.training.tasks.sources import limited

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
        batch_size: The one that is built into the exported file; 0: it takes any.
        filled: So many copies of its last sample filled the last mini-batch up to that.
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
    batch_size: int = 0
    filled: int = 0

    @property
    def ok(self) -> bool:
        """Whether both give the same, as far as float32 can.

        ``difference`` is at most :data:`TOLERANCE`; with quantized activations it is
        enough that accuracies differ by at most :data:`SCORE_TOLERANCE` and classes for at
        most :data:`CLASS_TOLERANCE` of the samples.
        """
        if not math.isfinite(self.difference):
            return False
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
        if self.batch_size:
            batches = f"in batches of {self.batch_size}, which is the file's own size"
            if self.filled:
                batches += f", the last one filled up with {self.filled} copies of its last sample"
            parts.append(batches)
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
        batch_size: Samples at a time, unless the ONNX file has a batch size of its own. A last
            mini-batch that is shorter is filled up with its last sample; what is computed of
            these copies is no sample's output, score or class.
        network: Which network of the NNP was exported; default: that of the first executor.
        max_bytes: What the NNP may unpack to.

    Raises:
        NNPError, DataError, RecipeError: As of ``evaluate_file``; a label that is no class too.
        NonFiniteError: An output of NNabla is NaN or infinite (names it, and the first sample).
        ExportError: ONNX Runtime does not load or run the file, or it has inputs or
            outputs that the NNP has not, or that have another shape there.

    Examples:
        >>> import nnabla_dqa as dqa
        >>> _ = dqa.convert_file("lenet.nnp", "lenet_dqa.nnp", "minmax:8")
        >>> _ = dqa.deploy_file("lenet_dqa.nnp", "lenet_8bit.nnp", allow_untrained=True)
        >>> _ = dqa.export_file("lenet_8bit.nnp", "lenet_8bit.onnx")
        >>> data = dqa.DataRecipe("digits.npz")
        >>> found = dqa.verify_export("lenet_8bit.nnp", "lenet_8bit.onnx", data)
        >>> found.samples, found.same_class
        (40, 1.0)
    """
    return Comparison(nnp, data, network, max_bytes).verify(exported, batch_size)


class Comparison:
    """An NNP in NNabla on data, beside which exported files are run.

    Args:
        nnp, data, network, max_bytes: As of :func:`verify_export`.

    Raises:
        NNPError, DataError, RecipeError: As of ``verify_export``, before there is an exported file.
        OnnxMissingError: The package ``onnxruntime`` is not installed.
    """

    def __init__(
        self,
        nnp: PathLike,
        data: DataRecipe,
        network: Optional[str] = None,
        max_bytes: Optional[int] = None,
    ) -> None:
        onnxruntime()
        self._nnp, self._recipe = nnp, data
        self._file = NetworkFile.read(nnp, max_bytes)
        self._run = find_run(self._file, network)
        self._samples = open_for(self._file, data, "validation")
        if data.limit is not None:
            self._samples = limited(self._samples, data.limit)
        self._program = Program(self._file)
        # The columns have to fit whatever the batch size.
        self._evaluation(max(1, self._file.network(self._run.network).batch_size))

    def _evaluation(self, batch_size: int) -> Tuple[Evaluation, Built]:
        shapes = self._samples.shapes
        return make_evaluation(self._program, self._run, self._recipe, shapes, batch_size)

    def verify(self, exported: PathLike, batch_size: int = 100) -> Verification:
        """Run a file; arguments, result and errors as of :func:`verify_export`."""
        engine = OnnxSession(exported)
        fixed = engine.batch_size
        size = fixed or batch_size
        task, built = self._evaluation(size)
        _check_names(exported, self._nnp, "input", engine.inputs, built.inputs)
        _check_names(exported, self._nnp, "output", engine.outputs, built.variables)
        for name, shape in engine.shapes.items():
            self._check_shape(exported, f"input {name}", shape, built.inputs[name].shape)
        outputs = {name: built.variables[name] for name in engine.outputs}
        tallies = {name: _Tally() for name in outputs}
        scored = outputs.get(self._run.output)
        is_scored = bool(task.metric) and scored is not None and scored.shape[:1] == (size,)
        scores, count, samples = np.zeros(2), size, 0
        for start in range(0, len(self._samples), size):
            rows = np.arange(start, min(start + size, len(self._samples)))
            batch = self._samples.batch(rows)
            count = len(next(iter(batch.values())))
            if not count:
                # Photos that cannot be read.
                continue
            samples += count
            target = task.target_of(batch) if is_scored else None
            fill(task.feeds, batch)
            nn.forward_all(list(outputs.values()))
            found = engine.run({name: v.d for name, v in built.inputs.items()})
            for name, v in outputs.items():
                self._check_finite(name, v.d, start, count)
                shape = found[name].shape
                self._check_shape(exported, f"output {name}", shape, v.shape)
                tallies[name].add(found[name], v.d, count if v.shape[:1] == (size,) else 0)
            if scored is not None and target is not None:
                both = (found[self._run.output], scored.d)
                scores += [_score(task, output, target) for output in both]
        first = tallies.get(self._run.output, next(iter(tallies.values())))
        score, nnp_score = (scores / max(1, samples)).tolist()
        return Verification(
            str(exported),
            f"ONNX Runtime {engine.version}",
            samples,
            max(tally.difference for tally in tallies.values()),
            first.same_class,
            task.metric if is_scored else "",
            score,
            nnp_score,
            bool(read_activations(self._file.archive)),
            fixed,
            size - count if fixed else 0,
        )

    def _check_shape(
        self,
        exported: PathLike,
        what: str,
        shape: Sequence[Optional[int]],
        wanted: Sequence[int],
    ) -> None:
        if len(shape) != len(wanted) or any(a not in (None, b) for a, b in zip(shape, wanted)):
            shown = ", ".join("any" if n is None else str(n) for n in shape)
            raise ExportError(
                f"{exported}: its {what} has the shape ({shown}), that of {self._nnp} "
                f"{tuple(wanted)}"
            )

    def _check_finite(self, name: str, output: np.ndarray, start: int, count: int) -> None:
        wrong = np.argwhere(~np.isfinite(output))
        if len(wrong):
            # Rows behind those of the samples are copies of the last one.
            row = min(int(wrong[0][0]), count - 1) if output.ndim else 0
            raise NonFiniteError(
                f"{self._nnp}: NNabla's own output {name} is NaN or infinite, first for sample "
                f"{start + row} of {self._recipe.train} (counted from 0); there is nothing to "
                f"compare with"
            )


def _score(task: Evaluation, output: np.ndarray, target: np.ndarray) -> float:
    if not np.isfinite(output).all():
        return math.nan
    return score_sums(task.metric, output, target, task.threshold)[0]


class _Tally:
    """How far two series of arrays are apart."""

    def __init__(self) -> None:
        self._apart = self._largest = 0.0
        self._classes = self._same = self._samples = 0

    def add(self, found: np.ndarray, wanted: np.ndarray, samples: int) -> None:
        """Count a mini-batch, of which the first rows are so many samples; 0: rows are none."""
        a, b = (v.astype(np.float64) for v in (found, wanted))
        apart = float(np.abs(a - b).max(initial=0.0)) if np.isfinite(a).all() else math.inf
        self._apart = max(self._apart, apart)
        self._largest = max(self._largest, float(np.abs(b).max(initial=0.0)))
        if samples:
            a, b = (v[:samples].reshape(samples, -1) for v in (a, b))
            self._classes = a.shape[1]
            self._same += int(np.sum(a.argmax(axis=1) == b.argmax(axis=1)))
            self._samples += samples

    @property
    def difference(self) -> float:
        """The largest, relative to the largest value."""
        return self._apart / max(self._largest, float(np.finfo(np.float32).tiny))

    @property
    def same_class(self) -> Optional[float]:
        """The share of samples whose largest value is at the same place."""
        return self._same / self._samples if self._classes > 1 else None


def _check_names(
    exported: PathLike, nnp: PathLike, kind: str, names: Iterable[str], known: Container[str]
) -> None:
    for name in names:
        if name not in known:
            raise ExportError(f"{exported}: its {kind} {name} is not in {nnp}")
