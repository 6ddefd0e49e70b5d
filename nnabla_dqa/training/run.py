"""Running an experiment: from its recipe to a folder with a deployed network and its scores."""

from __future__ import annotations

import dataclasses
import json
import time
import warnings
from pathlib import Path
from typing import Any, Callable, Dict, Optional, Tuple

import nnabla as nn
import numpy as np

from nnabla_dqa._util.devices import float_context, is_half
from nnabla_dqa._util.files import PathLike
from nnabla_dqa.distributed import Communicator, check_equal, given_or_single
from nnabla_dqa.distributed.nccl import check_device
from nnabla_dqa.graph.deploy import deploy
from nnabla_dqa.graph.save import save_network
from nnabla_dqa.layers.report import Report, report
from nnabla_dqa.layers.tensors import AttentionWarning
from nnabla_dqa.recipes.experiment import Experiment
from nnabla_dqa.training.loop import SAVE_SECONDS, Loop, gather_skipped
from nnabla_dqa.training.loss_scaler import LossScaler
from nnabla_dqa.training.result import Epoch
from nnabla_dqa.training.run_folder import RunFolder, environment, write_json
from nnabla_dqa.training.tasks.classifier import Classifier, Graph


@dataclasses.dataclass(frozen=True)
class ExperimentResult:
    """What :func:`run_experiment` did.

    Attributes:
        folder: Of the run.
        path: The network to use: low-bit, or float for a float experiment.
        accuracy: Of that file on the validation images, 0 to 1.
        epochs: All of them.
        report: The layers; None for a float experiment.
        messages: What the user should know.
    """

    folder: Path
    path: Path
    accuracy: float
    epochs: Tuple[Epoch, ...]
    report: Optional[Report]
    messages: Tuple[str, ...]


def run_experiment(
    experiment: Experiment,
    folder: PathLike,
    resume: bool = False,
    context: Optional[nn.Context] = None,
    communicator: Optional[Communicator] = None,
    on_epoch: Optional[Callable[[Epoch], None]] = None,
    progress: bool = False,
    save_seconds: float = SAVE_SECONDS,
) -> ExperimentResult:
    """Train, evaluate and deploy; everything is kept in ``folder``.

    Several processes call it together, each with its own communicator; the
    first one writes.

    Args:
        experiment: The recipe.
        folder: Made, or with ``resume`` that of the run to go on with; see
            :class:`~nnabla_dqa.training.run_folder.RunFolder`.
        resume: Go on from the folder's checkpoint; from the start if it has none yet.
        context: NNabla's; default: the current one. In a half context the
            layers compute in half precision, the loss is scaled, and quantizers,
            attention and solver stay in float32.
        communicator: The processes that train together; needed where a launcher
            started several.
        on_epoch: Called after each epoch, in the first process.
        progress: Show a progress bar on stderr.
        save_seconds: Longest time without a checkpoint.

    Raises:
        RunError: The folder holds another run, or none to resume.
        RecipeError, DataError, CheckpointError, ParallelError, NonFiniteError,
            TrainingStopped: With one line; the last checkpoint is kept.
    """
    experiment = experiment.resolved()
    place, comm = RunFolder(folder), given_or_single(communicator)
    context = context or nn.get_current_context()
    check_device(comm, context)
    if resume:
        place.check_same(experiment)
    elif comm.rank == 0:
        place.check_new()
    text = json.dumps(experiment.decisive(), sort_keys=True)
    check_equal(comm, {"the recipe": np.frombuffer(text.encode(), np.uint8)})
    with warnings.catch_warnings(), nn.context_scope(context):
        # The result's messages say it, once.
        warnings.simplefilter("ignore", AttentionWarning)
        job = Classifier(experiment, comm)
        if comm.rank == 0 and not resume:
            # Only now: an error up to here leaves nothing behind.
            place.begin(experiment)
        place.check_seen(comm)
        loop = Loop(job, place.checkpoint, save_seconds, LossScaler() if is_half(context) else None)
        if resume and place.checkpoint.exists():
            loop.resume()
        if comm.rank == 0:
            start = environment(context, comm.size)
            place.note_start({"seed": experiment.seed, "from_step": loop.at.step, **start})
        started = time.perf_counter()
        loop.run(on_epoch, place.monitors, progress)
        with nn.context_scope(float_context(context)):
            return _finish(job, loop, place, time.perf_counter() - started)


def _finish(job: Classifier, loop: Loop, place: RunFolder, seconds: float) -> ExperimentResult:
    """Write network, deployed network and result; evaluate what was deployed."""
    comm, epochs = job.communicator, loop.at.history
    target = place.path / ("network.nnp" if job.experiment.quantizers is None else "deployed.nnp")
    notes: Dict[str, Any] = {}
    if comm.rank == 0:
        notes = _write_networks(job, target)
    comm.barrier()
    x = nn.Variable((job.deployable.x.shape[0], *job.data.shapes["x"]))
    graph = nn.graph_def.load(str(target))
    counts = job.count_hits([Graph(x, graph(x))])
    accuracy = counts[1] / counts[0]
    table = report(job.scope) if job.layers else None
    messages = list(table.messages()) if table is not None else []
    mixture = job.experiment.mixture()
    told = mixture.mixing.check(mixture.quantizers) if mixture is not None else None
    messages += [told] if told else []
    skipped = {**loop.at.skipped, **gather_skipped(comm, job.data.skipped)}
    skipped.update(gather_skipped(comm, job.validation.skipped))
    messages += [f"left out: {path}: {reason}" for path, reason in skipped.items()]
    result = {
        "method": job.experiment.method,
        "accuracy": accuracy,
        "top5": counts[2] / counts[0] if epochs[-1].top5 is not None else None,
        "validation_images": counts[0],
        "off_target": sum(not row.on_target for row in table.layers) if table else None,
        **notes,
        "seconds_this_start": round(seconds, 1),
        "seconds_of_epochs": round(sum(epoch.seconds for epoch in epochs), 1),
        "skipped_images": len(skipped),
        "data": job.identity()["data"],
        "recipe": job.experiment.to_json(),
        "starts": place.starts() if comm.rank == 0 else [],
        "epochs": [dataclasses.asdict(epoch) for epoch in epochs],
        "messages": messages,
    }
    if comm.rank == 0:
        write_json(place.result, result)
    return ExperimentResult(place.path, target, accuracy, tuple(epochs), table, tuple(messages))


def _write_networks(job: Classifier, target: Path) -> Dict[str, Any]:
    """The files, and what is worth knowing of them."""
    scope, graph = job.to_deploy()
    names = {"x": graph.x}, {"y": graph.logits}
    trained = {n: v for n, v in job.parameters().items() if v.need_grad and "/dqa/" not in n}
    notes: Dict[str, Any] = {"parameters": sum(v.size for v in trained.values())}
    with nn.parameter_scope("", scope):
        if job.experiment.quantizers is None:
            size = save_network(target, *names, network=job.experiment.model.name)
            return {**notes, "file_bytes": size, "bits_per_weight": 32.0}
        deployed = deploy(target, *names, network=job.experiment.model.name)
    return {
        **notes,
        "file_bytes": deployed.file_bytes,
        "bits_per_weight": deployed.bits_per_weight,
        "layers": [
            {
                "name": row.report.name,
                "weights": row.report.weights,
                "quantizer": row.quantizer,
                "values": row.values,
                "attention": list(row.report.attention),
            }
            for row in deployed.layers
        ],
    }
