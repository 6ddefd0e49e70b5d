"""The score of an NNP of any kind, and mini-batches for it."""

from __future__ import annotations

import itertools
from typing import Dict, Iterator, NamedTuple, Optional

import nnabla as nn
import numpy as np

from nnabla_dqa._util.files import PathLike
from nnabla_dqa._util.warn import warn
from nnabla_dqa.data import Data, DataError, iterate, open_data
from nnabla_dqa.data.open import holds_images
from nnabla_dqa.nnp.check_activations import ActivationCheck, check_activations
from nnabla_dqa.nnp.file import NetworkFile
from nnabla_dqa.nnp.inspect import target_inputs
from nnabla_dqa.nnp.live import Program
from nnabla_dqa.recipes.checks import RecipeError
from nnabla_dqa.recipes.parts import DataRecipe
from nnabla_dqa.training.tasks.evaluation import evaluate
from nnabla_dqa.training.tasks.objective import make_evaluation
from nnabla_dqa.training.tasks.plan import columns_of, find_run, network_inputs
from nnabla_dqa.training.tasks.sources import check_classes, limited


class Score(NamedTuple):
    """What :func:`evaluate_file` measured."""

    metric: str
    value: float
    samples: int


def evaluate_file(
    path: PathLike,
    data: DataRecipe,
    batch_size: int = 100,
    output: Optional[str] = None,
    max_bytes: Optional[int] = None,
) -> Score:
    """Run an NNP, plain, converted, deployed or packed, over the validation part of ``data``.

    A converted file runs with the target quantizer of each layer alone.

    Args:
        path: The NNP; the network of its first executor is run.
        data: ``data.train`` is where the samples are: a folder's validation
            part, or the file itself. Images of class folders are brought to
            ``data.image_shape``, default: the size of the network's input.
        batch_size: Samples at a time; does not change the result.
        output: Which output; default: the first.
        max_bytes: What the NNP may unpack to; the default is that of
            :meth:`nnabla_dqa.nnp_format.archive.Archive.read`.

    Returns:
        Accuracy (0 to 1) against class numbers, mean squared error against
        targets shaped like the output.

    Raises:
        NNPError, DataError, RecipeError: One line that names file, key or column.
        ValueError: ``batch_size`` is below 1.

    Warns:
        UserWarning: The data have fewer classes than the network, so that theirs may have
            other numbers.

    Examples:
        >>> import nnabla_dqa as dqa
        >>> score = dqa.evaluate_file("lenet.nnp", dqa.DataRecipe("digits.npz"))
        >>> score.metric, score.samples
        ('accuracy', 40)
    """
    file = NetworkFile.read(path, max_bytes)
    run = find_run(file, output=output)
    samples = open_for(file, data, "validation")
    if data.limit is not None:
        samples = limited(samples, data.limit)
    task, _ = make_evaluation(Program(file), run, data, samples.shapes, batch_size)
    if not task.metric:
        raise DataError(
            f"{data.train}: no column to compare output of shape {task.output.shape[1:]} with; "
            f"the data have {', '.join(f'{k} {v}' for k, v in samples.shapes.items())}"
        )
    if task.metric == "accuracy":
        note = check_classes(samples, task.classes, data.train)
        if note is not None:
            warn(note, UserWarning)
    return Score(task.metric, evaluate([task], samples)[0].value, len(samples))


def check_on_data(
    path: PathLike, data: DataRecipe, batch_size: int = 100, max_bytes: Optional[int] = None
) -> ActivationCheck:
    """:func:`~nnabla_dqa.check_activations` on one mini-batch of the validation part of ``data``.

    Raises:
        NNPError, DataError, RecipeError: One line that names file, key or column.
        ValueError: The file has no quantized activations.
    """
    file = NetworkFile.read(path, max_bytes)
    samples = open_for(file, data, "validation")
    size = min(batch_size, len(samples))
    batch = next(input_batches(file, data, samples, size, 1))
    return check_activations(path, batch, max_bytes)


def open_for(file: NetworkFile, data: DataRecipe, subset: str) -> Data:
    """The samples of ``data.train`` for a file: images are brought to the size of its input.

    Raises:
        RecipeError: ``data`` is no :class:`~nnabla_dqa.DataRecipe`.
        DataError: As of :func:`nnabla_dqa.data.open_data`.
    """
    if not isinstance(data, DataRecipe):
        raise RecipeError(
            f"data must be a DataRecipe, such as DataRecipe('digits.npz'); got {data!r}"
        )
    shape = data.image_shape
    if shape is None and holds_images(data.train, subset):
        inputs = network_inputs(file.network(find_run(file).network), buffers=True)
        shape = next((s for s in inputs.values() if len(s) == 3 and s[0] in (1, 3)), None)
    return open_data(data.train, subset, data.scale, shape)


def input_batches(
    file: NetworkFile, recipe: DataRecipe, data: Data, batch_size: int, count: int
) -> Iterator[Dict[str, np.ndarray]]:
    """``count`` mini-batches for the inputs of the network that is run, shuffled.

    Raises:
        DataError: No column for an input, or one of another shape.
    """
    run = find_run(file)
    columns = columns_of(file, recipe, data.shapes, run.columns)
    proto = file.network(run.network)
    labels = target_inputs(proto)
    inputs = network_inputs(proto, buffers=True)
    feeds = {
        name: columns.feed(name, nn.Variable((1, *shape)), 0, name in labels)
        for name, shape in inputs.items()
    }
    for batch in itertools.islice(iterate(data, batch_size, 0, 0), count):
        yield {
            name: batch[feed.column].reshape(batch_size, *inputs[name])
            for name, feed in feeds.items()
        }
