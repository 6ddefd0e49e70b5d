"""Parameters that a model begins with, taken from the run of another recipe."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Dict

import nnabla as nn
import numpy as np

from nnabla_dqa.export.metadata import DEPLOYED, PACKED
from nnabla_dqa.layers.config import CONFIG
from nnabla_dqa.layers.tensors import QuantizedTensor, find_quantized, state_paths
from nnabla_dqa.nnp.file import NetworkFile
from nnabla_dqa.nnp_format.limits import MAX_BYTES
from nnabla_dqa.recipes.recipe import RecipeError
from nnabla_dqa.recipes.yaml_files import is_nnp
from nnabla_dqa.training.checkpoint import read_checkpoint


def load_initial(path: str, scope: Any) -> None:
    """Take over the parameters of a run; the model has been built in ``scope``.

    State of quantizers comes along where the file has that of the very same ones; arrays that
    schedules drive stay as they are.

    Args:
        path: An NNP of float weights, such as ``network.nnp``, or a run's ``checkpoint``.
        scope: The dictionary of a parameter scope.

    Raises:
        RecipeError: The file is of low bits, or a parameter of the model is not there or has
            another shape. Nothing has been taken over then.
        NNPError, CheckpointError: The file cannot be read.
    """
    arrays = _arrays(path)
    with nn.parameter_scope("", scope):
        present: Dict[str, Any] = nn.get_parameters(grad_only=False)
    state = set(state_paths(present))
    wanted = {name: v for name, v in present.items() if name not in state}
    for name, v in wanted.items():
        if name not in arrays:
            raise RecipeError(f"key 'init': {path}: has no parameter {name} of this model")
        if arrays[name].shape != v.shape:
            raise RecipeError(
                f"key 'init': {path}: parameter {name} has shape {arrays[name].shape}, in the "
                f"model {v.shape}"
            )
    names = {v.data: name for name, v in present.items()}
    for tensor in find_quantized(scope):
        wanted.update(_learned(tensor, names, arrays))
    for name, v in wanted.items():
        v.d = arrays[name]


def _arrays(path: str) -> Dict[str, np.ndarray]:
    if not Path(path).is_file():
        raise RecipeError(f"key 'init': {path}: there is no such file")
    if is_nnp(path):
        file = NetworkFile.read(path, MAX_BYTES)
        if file.kind in (DEPLOYED, PACKED):
            raise RecipeError(
                f"key 'init': {path}: is {file.kind}, its weights have low bits already; name the "
                f"checkpoint of that run, or a float network"
            )
        return {name: parameter.array for name, parameter in file.archive.parameters.items()}
    return read_checkpoint(path).arrays


def _learned(
    tensor: QuantizedTensor, names: Dict[Any, str], arrays: Dict[str, np.ndarray]
) -> Dict[str, Any]:
    """The arrays of a tensor's state that the file has too, without those of schedules."""
    config, _ = tensor.config.entry()
    known = [names[v.data] for v in tensor.arrays[CONFIG].values()]
    if not any(name in arrays and name.endswith(config) for name in known):
        return {}
    return {
        names[v.data]: v
        for path, v in tensor.state.items()
        if tensor.layout[path].kind != "schedule" and names[v.data] in arrays
    }
