"""Small networks and data: files as Neural Network Console and NNabla's own ``save`` write them."""

from __future__ import annotations

import re

import nnabla as nn
import nnabla.functions as F
import nnabla.parametric_functions as PF
import numpy as np
import pytest
from nnabla.utils import nnabla_pb2
from nnabla.utils.save import save

from nnabla_dqa.nnp.convert import convert_file
from nnabla_dqa.nnp_format.archive import Archive
from nnabla_dqa.nnp_format.parameters import Parameter
from nnabla_dqa.recipes.recipe import Recipe
from nnabla_dqa.training.result import TrainingStopped
from nnabla_dqa.training.run import train
from tests.training.experiments import signal_at

SAMPLE = (1, 4, 4)
HEADS = {
    "softmax": (3, "Softmax", "CategoricalCrossEntropy", 1),
    "binary": (1, "Sigmoid", "BinaryCrossEntropy", 1),
    "regression": (2, "", "SquaredError", 2),
}
"""By what a network is for: outputs, last activation, loss, and the size of a target."""
_FIELDS = {"ReLU": "relu_param"}


class NetworkWriter:
    """A network definition, put together function by function."""

    def __init__(self, proto, name, batch_stat):
        self.network = proto.network.add(name=name, batch_size=8)
        self.batch_stat = batch_stat

    def variable(self, name, shape, kind="Buffer"):
        added = self.network.variable.add(name=name, type=kind)
        added.shape.dim.extend(shape if kind == "Parameter" else (-1, *shape))
        return name

    def add(self, kind, output, shape, *inputs, **arguments):
        """A function; an argument that is a tuple is a shape."""
        function = self.network.function.add(name=output, type=kind)
        function.input.extend(inputs)
        function.output.append(self.variable(output, shape))
        snake = re.sub("(?<!^)([A-Z])", r"_\1", kind).lower() + "_param"
        for name, value in arguments.items():
            message = getattr(function, _FIELDS.get(kind, snake))
            if isinstance(value, tuple):
                getattr(message, name).dim.extend(value)
            elif isinstance(value, list):
                getattr(message, name).extend(value)
            else:
                setattr(message, name, value)
        return output

    def layers(self, parameters, head, dropout):
        """Convolution, normalization, ReLU, affine and the head's activation."""
        for name, (array, _) in parameters.items():
            self.variable(name, array.shape, "Parameter")
        x = self.variable("Input", SAMPLE)
        pair = dict(pad=(1, 1), stride=(1, 1), dilation=(1, 1), group=1, base_axis=1)
        names = [n for n in parameters if n.startswith("Convolution/")]
        h = self.add("Convolution", "Convolution", (4, 4, 4), x, *names, **pair)
        names = [n for n in parameters if n.startswith("BatchNormalization/")]
        h = self.add(
            "BatchNormalization",
            "BatchNormalization",
            (4, 4, 4),
            h,
            *names,
            axes=[1],
            decay_rate=0.9,
            eps=1e-4,
            batch_stat=self.batch_stat,
        )
        h = self.add("ReLU", "ReLU", (4, 4, 4), h, inplace=True)
        if dropout:
            h = self.add("Dropout", "Dropout", (4, 4, 4), h, p=dropout, seed=-1)
        size, activation, _, _ = HEADS[head]
        names = [n for n in parameters if n.startswith("Affine/")]
        h = self.add("Affine", "Affine", (size,), h, *names, base_axis=1)
        if activation == "Softmax":
            return self.add(activation, activation, (size,), h, axis=1)
        return self.add(activation, activation, (size,), h) if activation else h


def console_parameters(head="softmax", seed=0):
    """Random weights, and the start values of batch normalization."""
    rng = np.random.RandomState(seed)
    size = HEADS[head][0]
    normalization = {"beta": 0.0, "gamma": 1.0, "mean": 0.0, "var": 1.0}
    arrays = {
        "Convolution/conv/W": rng.randn(4, 1, 3, 3) * 0.4,
        "Convolution/conv/b": rng.randn(4) * 0.1,
        **{
            f"BatchNormalization/bn/{k}": np.full((1, 4, 1, 1), v) for k, v in normalization.items()
        },
        "Affine/affine/W": rng.randn(64, size) * 0.2,
        "Affine/affine/b": rng.randn(size) * 0.1,
    }
    return {name: Parameter(array.astype(np.float32)) for name, array in arrays.items()}


def write_console(path, head="softmax", dropout=0.0, fixed=(), seed=0, x="x", y="y"):
    """A project of Neural Network Console: Main trains, MainValidation tests, MainRuntime runs.

    ``fixed`` are the parameters with a learning rate multiplier of zero, ``x``
    and ``y`` the columns that the file names.
    """
    parameters = console_parameters(head, seed)
    proto = nnabla_pb2.NNablaProtoBuf()
    _, _, loss, target_size = HEADS[head]
    output = ""
    for name in ("Main", "MainValidation", "MainRuntime"):
        writer = NetworkWriter(proto, name, batch_stat=name == "Main")
        output = writer.layers(parameters, head, dropout if name == "Main" else 0.0)
        if name != "MainRuntime":
            target = writer.variable(f"{loss}_T", (target_size,))
            arguments = {"axis": 1} if head == "softmax" else {}
            writer.add(loss, loss, (target_size,), output, target, **arguments)
    optimizer = proto.optimizer.add(
        name="Optimizer", network_name="Main", dataset_name="Training", update_interval=1
    )
    executor = proto.executor.add(name="Executor", network_name="MainRuntime", num_evaluations=1)
    optimizer.solver.type = "Adam"
    optimizer.loss_variable.add(variable_name=loss)
    optimizer.data_variable.add(variable_name="Input", data_name=x)
    optimizer.data_variable.add(variable_name=f"{loss}_T", data_name=y)
    executor.data_variable.add(variable_name="Input", data_name=x)
    executor.output_variable.add(variable_name=output, data_name="y'")
    for name in parameters:
        multiplier = float(not (name in fixed or name.endswith(("bn/mean", "bn/var"))))
        optimizer.parameter_variable.add(variable_name=name, learning_rate_multiplier=multiplier)
        executor.parameter_variable.add(variable_name=name)
    Archive(path, proto, parameters, None, {}).write(path)
    return path


def write_plain(path, build, inputs=None, outputs=None, executor=True, all_outputs=False):
    """One network saved with NNabla's ``save`` from the live graph ``build(*inputs)``.

    ``inputs`` are shapes of a batch by name, ``outputs`` the names of what
    ``build`` gives. The executor names the first of them, or all.
    """
    nn.clear_parameters()
    nn.seed(1)
    inputs = inputs or {"x": (8, *SAMPLE)}
    variables = {name: nn.Variable(shape) for name, shape in inputs.items()}
    made = build(*variables.values())
    made = made if isinstance(made, tuple) else (made,)
    outputs = dict(zip(outputs or ["out"], made))
    network = {"name": "net", "batch_size": 8, "outputs": outputs, "names": variables}
    contents = {"networks": [network]}
    if executor:
        names = {"data": list(inputs), "output": list(outputs)[: None if all_outputs else 1]}
        contents["executors"] = [{"name": "run", "network": "net", **names}]
    save(str(path), contents)
    nn.clear_parameters()
    return path


def classifier(x, classes=3):
    """Two affine layers, no activation at the end."""
    return PF.affine(F.relu(PF.affine(x, 12, name="a1")), classes, name="a2")


def convert(source, rules="minmax:2,4,8"):
    """The converted file beside ``source``."""
    target = source.with_name(f"{source.stem}_dqa.nnp")
    convert_file(source, target, rules)
    return target


def samples(count=240, head="softmax", seed=0):
    """Noisy images of three kinds that any small net tells apart, and their targets."""
    kinds = np.random.RandomState(7).randn(3, *SAMPLE)
    rng = np.random.RandomState(seed)
    labels = rng.randint(0, 3, count)
    x = (kinds[labels] + 0.3 * rng.randn(count, *SAMPLE)).astype(np.float32)
    if head == "softmax":
        return x, labels.astype(np.int32)
    if head == "binary":
        return x, (labels == 1).astype(np.float32)
    return x, np.stack([labels - 1.0, labels == 0], axis=1).astype(np.float32)


def write_samples(path, count=240, head="softmax", seed=0, names=("x", "y")):
    """:func:`samples` as an ``.npz`` with columns of these names; a column named "" is left out."""
    columns = dict(zip(names, samples(count, head, seed)))
    np.savez(path, **{name: values for name, values in columns.items() if name})
    return path


def make(folder, rules="minmax:2,4,8", head="softmax", dropout=0.0, fixed=(), **options):
    """A converted console file, its data, and a recipe for them with ``options``."""
    source = write_console(folder / "net.nnp", head, dropout, fixed)
    data = {
        "train": str(write_samples(folder / "train.npz", head=head)),
        "validation": str(write_samples(folder / "test.npz", 100, head, seed=1)),
        **options.pop("data", {}),
    }
    options = {"batch_size": 24, "epochs": 4, "learning_rate": 0.01, **options}
    return convert(source, rules), Recipe.from_mapping({"data": data, **options})


def changed(recipe, **options):
    """The recipe with other options."""
    return Recipe.from_mapping({**recipe.to_json(), **options})


def interrupted(step, *args, **options):
    """What :func:`train` raises when Ctrl-C comes in the middle of this step."""
    with pytest.raises(TrainingStopped) as stopped:
        train(*args, on_step=signal_at(step), **options)
    return stopped


def parameters_of(path):
    """Arrays by name, as plain NNabla reads them."""
    return {name: v.d.copy() for name, v in nn.graph_def.load(str(path)).get_parameters().items()}


def assert_same_parameters(first, second):
    """Bit for bit."""
    assert list(first) == list(second)
    for name, array in first.items():
        np.testing.assert_array_equal(array, second[name], err_msg=name)


def one_line(error):
    """The message of a caught error; it must be one line of text."""
    message = str(error.value)
    assert message.strip()
    assert "\n" not in message
    return message
