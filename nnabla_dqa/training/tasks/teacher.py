"""The float network that another one learns from (Hinton et al., arXiv 1503.02531)."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from pathlib import Path
from typing import Any, Dict, List, Mapping, Optional

import nnabla as nn
import numpy as np

from nnabla_dqa._util.messages import one_line
from nnabla_dqa.export.metadata import DEPLOYED, PACKED
from nnabla_dqa.models import build
from nnabla_dqa.models.pixels import normalized
from nnabla_dqa.nnp.file import CONVERTED, NetworkFile
from nnabla_dqa.nnp.live import Program
from nnabla_dqa.nnp_format.limits import DAMAGE, Limit
from nnabla_dqa.nnp_format.members import NNPError
from nnabla_dqa.nnp_format.parameters import read_parameters
from nnabla_dqa.quantization.graph_ops import Variable
from nnabla_dqa.recipes.recipe import DISTILLATION, Recipe, RecipeError
from nnabla_dqa.recipes.yaml_files import is_nnp
from nnabla_dqa.training.checkpoint import CheckpointError, read_checkpoint
from nnabla_dqa.training.tasks.losses import Logits, Teacher, logits_of
from nnabla_dqa.training.tasks.plan import find_run, network_inputs

_PARAMETERS = (".h5", ".protobuf")
_QUANTIZED = "a teacher is a float network: name the one that it was made from"


class FileTeacher(Teacher):
    """The network that an NNP runs, with float weights.

    Args:
        program: Of the file; built with ``quantized=False`` if that is converted.

    Raises:
        RecipeError: A parameter is NaN or infinite.
    """

    def __init__(self, program: Program) -> None:
        self._program = program
        self.path = program.file.archive.path
        self.checksum = _checksum(self.path, program.parameters())

    def outputs(
        self, student: Mapping[str, Logits], inputs: Mapping[str, Variable], batch_size: int
    ) -> List[Logits]:
        file = self._program.file
        run = find_run(file)
        proto = file.network(run.network)
        made = {name for function in proto.function for name in function.output}
        names = list(student) if made.issuperset(student) else list(run.outputs)
        wanted = network_inputs(proto, buffers=True)
        given = dict(inputs)
        if len(wanted) == len(given) == 1:
            # What the only input is called does not matter.
            given = dict(zip(wanted, given.values()))
        fits = set(wanted) == set(given) and len(names) == len(student)
        if not fits or any(wanted[n] != tuple(v.shape[1:]) for n, v in given.items()):
            takes = {name: v.shape[1:] for name, v in inputs.items()}
            raise NNPError(
                f"{self.path}: is no teacher for this network: it takes {_shown(wanted)} and gives "
                f"{', '.join(names)}, wanted are {_shown(takes)} and {', '.join(student)}"
            )
        built = self._program.build(run.network, batch_size, given, batch_stat=False, dropout=False)
        found = []
        for own, name in zip(student.values(), names):
            logits = logits_of(built, proto, name)
            if not own.activation:
                logits = Logits(built.variables[name], "")
            if logits.activation and logits[1:] != own[1:]:
                raise NNPError(
                    f"{self.path}: is no teacher for this network: its output {name} is that of a "
                    f"{_end_of(logits)}, the network's of a {_end_of(own)}"
                )
            found.append(logits)
        return found


class ModelTeacher(Teacher):
    """A float model of this package.

    Args:
        path: The file that ``arrays`` come from.
        recipe: Its model, and the mean and standard deviation of its pixels.
        arrays: Its parameters. Without those that normalize pixels the recipe's values hold.

    Raises:
        RecipeError: A parameter of the model is missing, has another shape, or is NaN or infinite.
    """

    def __init__(self, path: Path, recipe: Recipe, arrays: Mapping[str, np.ndarray]) -> None:
        self.path, self._recipe = path, recipe
        self._scope: Any = OrderedDict()
        assert recipe.model is not None
        size = recipe.model.image_size
        with nn.auto_forward(False):
            self._logits(nn.Variable((1, 3, size, size)))
        with nn.parameter_scope("", self._scope):
            parameters = nn.get_parameters(grad_only=False)
        for name, v in parameters.items():
            if name not in arrays and name.startswith("pixels/"):
                continue
            if name not in arrays or arrays[name].shape != v.shape:
                found = f"shape {arrays[name].shape}" if name in arrays else "none"
                raise RecipeError(
                    f"key 'teacher': {path}: is no {recipe.model.name} of {recipe.model.classes} "
                    f"classes and width {recipe.model.width:g}: for parameter {name} of shape "
                    f"{v.shape} it has {found}"
                )
            v.d = arrays[name]
        self.checksum = _checksum(path, parameters)

    def outputs(
        self, student: Mapping[str, Logits], inputs: Mapping[str, Variable], batch_size: int
    ) -> List[Logits]:
        shapes = [v.shape for v in inputs.values()]
        if len(shapes) != 1 or len(shapes[0]) != 4 or shapes[0][1] != 3 or len(student) != 1:
            takes = {name: v.shape[1:] for name, v in inputs.items()}
            raise NNPError(
                f"{self.path}: is no teacher for this network: it takes images (3, H, W) and gives "
                f"classes, wanted are {_shown(takes)} and {', '.join(student)}"
            )
        with nn.auto_forward(False):
            logits = self._logits(next(iter(inputs.values())))
        own = next(iter(student.values()))
        return [Logits(logits, own.activation)]

    def _logits(self, x: Variable) -> Variable:
        model, data = self._recipe.model, self._recipe.data
        assert model is not None
        with nn.parameter_scope("", self._scope):
            return build(
                model.name,
                normalized(x, data.mean, data.std, 1),
                model.classes,
                train=False,
                width=model.width,
                stem_stride=model.stem_stride,
                rng=np.random.RandomState(0),
            )


def open_teacher(
    recipe: Recipe, student: Optional[NetworkFile] = None, max_bytes: Optional[int] = None
) -> Optional[Teacher]:
    """The teacher that a recipe names; None if it has none.

    Args:
        recipe: Its keys ``teacher``, ``loss`` and ``model`` count.
        student: The NNP that is trained, whose float weights are the default.
        max_bytes: What the file may unpack to.

    Raises:
        RecipeError: The file is not there, its weights are not float, or it is no model of this
            package.
        NNPError, CheckpointError: It cannot be read; or the recipe names no teacher and the
            student is trained already.
    """
    if recipe.teacher is None:
        return _own_weights(student) if recipe.loss == DISTILLATION else None
    path = Path(recipe.teacher)
    if path.is_dir():
        raise RecipeError(
            f"key 'teacher': {path}: is a folder; name a file in it, of a run network.nnp"
        )
    if not path.is_file():
        raise RecipeError(f"key 'teacher': {path}: there is no such file")
    if is_nnp(path):
        file = NetworkFile.read(path, max_bytes)
        quantized = file.kind in (DEPLOYED, PACKED)
        if quantized or (file.kind == CONVERTED and file.is_trained):
            what = file.kind if quantized else "converted and trained"
            raise RecipeError(f"key 'teacher': {path}: is {what}; {_QUANTIZED}")
        return FileTeacher(Program(file, quantized=False))
    if path.suffix in _PARAMETERS:
        if recipe.model is None:
            raise RecipeError(
                f"key 'teacher': {path}: holds parameters alone; for an NNP name an NNP"
            )
        return _of_model(path, recipe, _read(path, max_bytes))
    try:
        checkpoint = read_checkpoint(path)
    except CheckpointError as error:
        raise RecipeError(
            f"key 'teacher': {error}; name an .nnp, a run's checkpoint or an .h5"
        ) from None
    notes = checkpoint.notes.get("recipe")
    made = None if notes is None else Recipe.from_mapping(notes)
    if made is None:
        raise RecipeError(
            f"key 'teacher': {path}: is the checkpoint of a training without a recipe; name one "
            f"of a model of this package, or an NNP"
        )
    if made.model is None:
        raise RecipeError(
            f"key 'teacher': {path}: is the checkpoint of an NNP; name the NNP itself"
        )
    return _of_model(path, made, checkpoint.arrays)


def _own_weights(student: Optional[NetworkFile]) -> Teacher:
    assert student is not None
    if student.is_trained:
        raise NNPError(
            f"{student.archive.path}: is trained already, so its weights are no teacher; name the "
            f"float file in the recipe: teacher: ..."
        )
    return FileTeacher(Program(student, quantized=False))


def _of_model(path: Path, recipe: Recipe, arrays: Mapping[str, np.ndarray]) -> Teacher:
    if any("/dqa/" in name for name in arrays):
        raise RecipeError(f"key 'teacher': {path}: has quantized layers; {_QUANTIZED}")
    if recipe.model is not None and recipe.model.channel_last:
        # Kernels (out, *kernel, in) and normalization (1, 1, 1, C) alike.
        arrays = {n: a.transpose(0, 3, 1, 2) if a.ndim == 4 else a for n, a in arrays.items()}
    return ModelTeacher(path, recipe, arrays)


def _read(path: Path, max_bytes: Optional[int]) -> Dict[str, np.ndarray]:
    try:
        limit = Limit.of(path.stat().st_size, max_bytes)
        found = read_parameters(path.suffix, path.read_bytes(), limit)
    except DAMAGE as error:
        raise RecipeError(
            f"key 'teacher': {path}: holds no parameters, or is damaged: {one_line(error)}"
        ) from None
    return {name: parameter.array for name, parameter in found.items()}


def _checksum(path: Path, parameters: Mapping[str, Variable]) -> str:
    total = hashlib.sha256()
    for name in sorted(parameters):
        if not np.isfinite(parameters[name].d).all():
            raise RecipeError(
                f"key 'teacher': {path}: parameter {name} has NaN or infinity in it; name a "
                f"network whose training went well"
            )
        total.update(f"{name} {parameters[name].shape}".encode())
        total.update(np.ascontiguousarray(parameters[name].d).tobytes())
    return total.hexdigest()[:16]


def _end_of(logits: Logits) -> str:
    over = f" over axis {logits.axis}" if logits.activation == "softmax" else ""
    return f"{logits.activation}{over}"


def _shown(shapes: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {tuple(shape)}" for name, shape in shapes.items())
