"""Proving, by running a deployed NNP, that what enters its layers lies on the levels it states."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, Dict, List, Mapping, Optional, Tuple

import nnabla as nn
import numpy as np

from nnabla_dqa._util.files import PathLike
from nnabla_dqa._util.messages import one_line
from nnabla_dqa._util.tables import format_table
from nnabla_dqa.export.activation import DeployedActivation
from nnabla_dqa.export.metadata import read_activations
from nnabla_dqa.nnp.inspect import running_networks
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
        inputs: An array for each input of the network that is run, batch first, all of one
            batch size.
        max_bytes: What it may unpack to; the default is that of
            :meth:`nnabla_dqa.nnp_format.archive.Archive.read`.

    Raises:
        NNPError: It is no NNP, or broken.
        ValueError: It has no quantized activations, or other inputs.
        OSError: It cannot be read.

    Examples:
        >>> import nnabla as nn
        >>> import nnabla_dqa as dqa
        >>> import nnabla_dqa.parametric_functions as PF
        >>> import numpy as np
        >>> x = nn.Variable((8, 64))
        >>> y = PF.dqa_affine(x, 10, name="fc", quantizers=[dqa.SAWB(2)], activations=[dqa.Sign()])
        >>> _ = dqa.deploy("small.nnp", {"x": x}, {"y": y})
        >>> found = dqa.check_activations("small.nnp", {"x": np.random.randn(8, 64)})
        >>> found.rows[0].layer, found.rows[0].levels, found.rows[0].values
        ('fc/affine:input', 2, 2)
    """
    archive = Archive.read(path, max_bytes)
    stated = read_activations(archive)
    if not stated:
        raise ValueError(f"{path}: the file names no quantized activations")
    networks = {network.name: network for network in archive.definition.network}
    run = networks[[*running_networks(archive.definition), *networks][0]]
    found = _run(path, run, inputs, [a.name for a in stated])
    elsewhere = {v.name for network in networks.values() for v in network.variable}
    return ActivationCheck(
        Path(path),
        tuple(
            _checked(a, found[a.name])
            for a in stated
            # Those of other networks are not computed here.
            if found[a.name].size or a.name not in elsewhere
        ),
    )


def _checked(activation: DeployedActivation, values: np.ndarray) -> CheckedActivation:
    info = activation.quantizer
    fault = activation.fault(values) if values.size else "the file has no such variable"
    return CheckedActivation(
        activation.layer, info.name, info.levels, int(np.unique(values).size), fault
    )


def _run(
    path: PathLike, definition: Any, inputs: Mapping[str, np.ndarray], names: List[str]
) -> Dict[str, Any]:
    """All values of a network's variables of these names, computed by NNabla alone.

    A variable in a loop is one for each turn, called ``name_loop[0]`` and so on.
    """
    loops = {v.name: f"{v.name}_{v.repeat_id[0]}[" for v in definition.variable if v.repeat_id}
    with nn.context_scope(nn.Context(["cpu:float"])):
        graph = nn.graph_def.load(str(path))
        graph.expand_loop_control()
        network = graph.networks[definition.name]
        missing = sorted(set(network.inputs) ^ set(inputs))
        if missing:
            raise ValueError(f"{path}: its inputs are {list(network.inputs)}, not {list(inputs)}")
        arrays = [np.asarray(inputs[name], np.float32) for name in network.inputs]
        try:
            network(*[nn.Variable.from_numpy_array(array) for array in arrays])
        except RuntimeError as error:
            shapes = ", ".join(f"{k} {a.shape}" for k, a in zip(network.inputs, arrays))
            raise ValueError(
                f"{path}: NNabla cannot build network {definition.name}, which was saved for "
                f"{definition.batch_size} samples, for {shapes}: {one_line(error)}"
            ) from None
        variables = {
            name: [
                v.variable_instance
                for key, v in network.variables.items()
                if key == name or (name in loops and key.startswith(loops[name]))
            ]
            for name in names
        }
        nn.forward_all([v for several in variables.values() for v in several])
    return {
        name: np.concatenate([np.zeros(0, np.float32), *(v.d.ravel() for v in several)])
        for name, several in variables.items()
    }
