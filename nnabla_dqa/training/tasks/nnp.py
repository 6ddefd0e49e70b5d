"""An NNP as the network of a training."""

from __future__ import annotations

import dataclasses
import tempfile
from pathlib import Path
from typing import Dict, List, Mapping, Optional, Sequence, Tuple

import nnabla.functions as F

from nnabla_dqa.export.metadata import DEPLOYED, PACKED
from nnabla_dqa.export.nnp import write_nnp
from nnabla_dqa.layers.scopes import hard
from nnabla_dqa.nnp.convert import convert_file
from nnabla_dqa.nnp.deploy import deployed_from
from nnabla_dqa.nnp.file import CONVERTED, FLOAT, NetworkFile
from nnabla_dqa.nnp.inspect import running_networks, target_inputs
from nnabla_dqa.nnp.live import Program
from nnabla_dqa.nnp.prune import check_run
from nnabla_dqa.nnp_format.members import NNPError
from nnabla_dqa.quantization.graph_ops import Variable
from nnabla_dqa.recipes.recipe import Recipe, RecipeError
from nnabla_dqa.training.result import Epoch
from nnabla_dqa.training.tasks.inputs import Feed, Shape
from nnabla_dqa.training.tasks.network import Network, Objective, Written, layer_notes
from nnabla_dqa.training.tasks.objective import make_objective
from nnabla_dqa.training.tasks.plan import columns_of, network_inputs, resolve
from nnabla_dqa.training.tasks.teacher import open_teacher

_UNTRAINABLE = {
    CONVERTED: "all float, nothing in it learns low bits; convert the float file with quantizers",
    DEPLOYED: "a deployed file, quantized for good; convert and train the file it came from",
    PACKED: "a packed file, quantized for good; convert and train the float file it came from",
    FLOAT: "a float file, nothing in it learns low bits; convert it first, or name quantizers in "
    "the recipe",
}


class FileNetwork(Network):
    """A converted NNP, or a float one that the recipe's quantizers convert.

    Args:
        recipe: Names the NNP.
        max_bytes: What the NNP, or a teacher, may unpack to.

    Raises:
        NNPError: It has no layer that learns low bits, or none in the network that is run.
        RecipeError: It is converted already, and the recipe names quantizers.
    """

    def __init__(self, recipe: Recipe, max_bytes: Optional[int] = None) -> None:
        self.recipe, self._max_bytes = recipe, max_bytes
        self.messages: List[str] = []
        self.file = self._read(str(recipe.network))
        check_run(self.file)
        self.mixtures = self.file.all_mixtures
        self.identity = self.file.archive.metadata
        self.plan = resolve(self.file, recipe)
        shapes = network_inputs(self.file.network(self.plan.run.network), buffers=True).values()
        self.image_size = next((shape[-1] for shape in shapes if len(shape) == 3), 0)
        self.teacher = open_teacher(recipe, self.file, max_bytes)
        self.program = Program(self.file)
        self.scope = self.program.scope
        self.messages += fix_parameters(self.program)

    def _read(self, path: str) -> NetworkFile:
        file, rules = NetworkFile.read(path, self._max_bytes), self.recipe.quantization
        if rules is not None and file.kind == FLOAT:
            with tempfile.TemporaryDirectory() as folder:
                made = convert_file(path, Path(folder) / "converted.nnp", rules, self._max_bytes)
            self.messages += made.messages
            archive = dataclasses.replace(made.file.archive, path=file.archive.path)
            file = dataclasses.replace(made.file, archive=archive)
        elif rules is not None:
            raise RecipeError(f"key 'quantizers': {path} is {file.kind}; name the float file")
        if file.kind == CONVERTED:
            file.check_quantizers()
        if file.kind != CONVERTED or not file.rewritten:
            raise NNPError(f"{path}: is {_UNTRAINABLE[file.kind]}")
        return file

    def objective(self, shapes: Mapping[str, Shape], batch_size: int, validation: int) -> Objective:
        made = self.program, self.plan, self.recipe, shapes, self.teacher, batch_size
        return make_objective(*made)

    def to_estimate(
        self, shapes: Mapping[str, Shape], batch_size: int
    ) -> Tuple[Sequence[Feed], Variable]:
        run = self.plan.run
        columns = columns_of(self.file, self.recipe.data, shapes, run.columns)
        with hard():
            built = self.program.build(run.network, batch_size, batch_stat=True, dropout=False)
        labels = target_inputs(self.file.network(run.network))
        feeds = [columns.feed(name, v, 0, name in labels) for name, v in built.inputs.items()]
        return feeds, F.sink(*built.outputs.values())

    def write(self, target: Optional[Path], folder: Optional[Path], epochs: List[Epoch]) -> Written:
        assert target is not None
        result = self.file.with_parameters(self.program.arrays())
        result.archive.metadata = {
            **(self.file.archive.metadata or {}),
            "training": {
                "recipe": self.recipe.decisive(),
                "epochs": [epoch.summary() for epoch in epochs],
            },
        }
        result.save(target)
        built = {layer.name for layer in self.program.layers}
        self.messages += [
            f"layer {layer.name} is in no network that was trained"
            for layer in self.file.rewritten
            if layer.name not in built
        ]
        if folder is None:
            return Written(target, None, {})
        every = not running_networks(result.archive.definition)
        deployed = write_nnp(deployed_from(result, whole=every), folder / "deployed.nnp")
        return Written(target, deployed.path, layer_notes(deployed))


def fix_parameters(program: Program) -> List[str]:
    """Keep what the file's optimizers do not train; returns what the user should know.

    Raises:
        NNPError: No weights are left to train.
    """
    rates: Dict[str, float] = {}
    for optimizer in program.file.archive.definition.optimizer:
        for listed in optimizer.parameter_variable:
            known = rates.get(listed.variable_name, 0.0)
            rates[listed.variable_name] = max(known, listed.learning_rate_multiplier)
    parameters = program.parameters()
    fixed = [name for name, rate in rates.items() if rate == 0 and name in parameters]
    fixed = [name for name in fixed if parameters[name].need_grad]
    for name in fixed:
        parameters[name].need_grad = False
    messages = []
    if fixed:
        messages.append(f"kept fixed, as in the file's optimizer: {', '.join(fixed)}")
    weights = [layer.weight for layer in program.file.layers if layer.weight not in fixed]
    frozen = [name for name in weights if not parameters[name].need_grad]
    if frozen and len(frozen) == len(weights):
        raise NNPError(
            f"{program.file.archive.path}: all weights are marked as not to be trained "
            f"(need_grad false); nothing can learn low bits"
        )
    if frozen:
        messages.append(f"kept fixed, marked as not to be trained: {', '.join(frozen)}")
    other = [name for name, rate in rates.items() if rate not in (0, 1)]
    if other:
        messages.append(f"learning-rate multipliers of the file count as 1: {', '.join(other)}")
    return messages
