"""Proving, by running a deployed NNP, that what enters its layers lies on the levels it states."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, Dict, List, Mapping, Optional, Tuple

import nnabla as nn
import numpy as np

from nnabla_dqa._util.files import PathLike
from nnabla_dqa._util.tables import format_table
from nnabla_dqa.export.metadata import read_activations
from nnabla_dqa.nnp_format.archive import Archive


@dataclasses.dataclass(frozen=True)
class CheckedActivation:
    """A quantized activation and what was found; ``fault`` is empty if all is as stated."""

    layer: str
    quantizer: str
    levels: int
    values: int
    fault: str


@dataclasses.dataclass(frozen=True)
class ActivationCheck:
    """What :func:`check_activations` found; ``str()`` of it is a table."""

    path: Path
    rows: Tuple[CheckedActivation, ...]

    @property
    def ok(self) -> bool:
        """Whether every activation lies on the levels that the file states."""
        return not any(row.fault for row in self.rows)

    def __str__(self) -> str:
        head = ("activations", "quantizer", "levels", "distinct values", "on its grid")
        rows = [
            (
                row.layer,
                row.quantizer,
                f"{row.levels:,}",
                f"{row.values:,}",
                f"NO: {row.fault}" if row.fault else "yes",
            )
            for row in self.rows
        ]
        return format_table([head, *rows])


def check_activations(
    path: PathLike, inputs: Mapping[str, np.ndarray], max_bytes: Optional[int] = None
) -> ActivationCheck:
    """Run a deployed NNP on some data and look at every quantized activation.

    Args:
        path: The file.
        inputs: An array for each input of the network, batch first, all of one batch size.
        max_bytes: What it may unpack to; the default is that of
            :meth:`nnabla_dqa.nnp_format.archive.Archive.read`.

    Raises:
        NNPError: It is no NNP, or broken.
        ValueError: It has no quantized activations, or other inputs.
        OSError: It cannot be read.
    """
    stated = read_activations(Archive.read(path, max_bytes))
    if not stated:
        raise ValueError(f"{path}: the file names no quantized activations")
    found = _run(path, inputs, [a.name for a in stated])
    rows = tuple(
        CheckedActivation(
            a.layer,
            a.quantizer.name,
            a.quantizer.levels,
            int(np.unique(found[a.name]).size),
            a.fault(found[a.name]),
        )
        for a in stated
    )
    return ActivationCheck(Path(path), rows)


def _run(path: PathLike, inputs: Mapping[str, np.ndarray], names: List[str]) -> Dict[str, Any]:
    """The values of variables by name, computed by NNabla alone."""
    with nn.context_scope(nn.Context(["cpu:float"])):
        graph = nn.graph_def.load(str(path))
        network = graph.default_graph()
        missing = sorted(set(network.inputs) ^ set(inputs))
        if missing:
            raise ValueError(f"{path}: its inputs are {list(network.inputs)}, not {list(inputs)}")
        arrays = [np.asarray(inputs[name], np.float32) for name in network.inputs]
        network(*[nn.Variable.from_numpy_array(array) for array in arrays])
        variables = {name: network.variables[name].variable_instance for name in names}
        nn.forward_all(list(variables.values()))
    return {name: v.d.copy() for name, v in variables.items()}
