"""An NNP with what this package knows about it: its layers and what their weights go through.

In memory the networks use their weights directly. The functions of the
mixtures exist only in the file: they are taken out when it is read and written
out when it is saved.
"""

from __future__ import annotations

import copy
import dataclasses
import hashlib
from typing import Any, Dict, List, Set, Tuple

import numpy as np

from nnabla_dqa._util.files import PathLike
from nnabla_dqa._version import __version__
from nnabla_dqa.layers.config import CONFIG
from nnabla_dqa.layers.rules import Assignment
from nnabla_dqa.layers.tensors import STATE_SCOPE
from nnabla_dqa.mixing import Mixture
from nnabla_dqa.nnp.archive import METADATA, Archive, NNPError
from nnabla_dqa.nnp.expand import (
    definition_text,
    initial_state,
    is_rewritten,
    remove_mixtures,
    state_path,
)
from nnabla_dqa.nnp.layers import FileLayer, Untouched, discover
from nnabla_dqa.nnp.parameters import Parameter
from nnabla_dqa.quantization import quantizer_from_json

FORMAT = 1
FLOAT, CONVERTED, DEPLOYED = "float", "converted", "deployed"


@dataclasses.dataclass
class NetworkFile:
    """An NNP: plain ("float"), converted or deployed.

    ``layers`` are the layers that could be or are quantized, ``assigned`` what
    the weights of a converted file's layers go through, by the layers' names.
    """

    archive: Archive
    layers: List[FileLayer]
    untouched: List[Untouched]
    assigned: Dict[str, Assignment]

    @classmethod
    def read(cls, path: PathLike) -> NetworkFile:
        """Read an NNP of any kind.

        Raises:
            NNPError: It is no NNP, broken, or its notes do not fit its networks.
            OSError: It cannot be read.
        """
        archive = Archive.read(path)
        assigned: Dict[str, Assignment] = {}
        noted = _noted(archive) if archive.metadata is not None else {}
        try:
            remove_mixtures(archive.definition, list(noted))
        except ValueError as error:
            raise NNPError(f"{path}: {METADATA} does not fit the file: {error}") from None
        layers, untouched = discover(archive.definition, archive.parameters)
        if noted:
            known = {layer.weight: layer.name for layer in layers}
            missing = [weight for weight in noted if weight not in known]
            if missing:
                raise NNPError(
                    f"{path}: {METADATA} says that {missing[0]} is quantized, but no layer uses it"
                )
            assigned = {known[weight]: assignment for weight, assignment in noted.items()}
        file = cls(archive, layers, untouched, assigned)
        file._check_state()
        return file

    @property
    def kind(self) -> str:
        """``"float"``, ``"converted"`` or ``"deployed"``."""
        return FLOAT if self.archive.metadata is None else str(self.archive.metadata["kind"])

    @property
    def mixtures(self) -> Dict[str, Mixture]:
        """The mixture of each layer of a converted file, by its name."""
        return {name: assignment.mixture for name, assignment in self.assigned.items()}

    @property
    def quantized(self) -> List[FileLayer]:
        """The layers of a converted file, also those that a rule keeps float."""
        return [layer for layer in self.layers if layer.name in self.assigned]

    @property
    def networks(self) -> Tuple[str, ...]:
        """Names of the networks."""
        return tuple(network.name for network in self.archive.definition.network)

    def network(self, name: str) -> Any:
        """The definition of one network.

        Raises:
            NNPError: There is none of that name; lists those there are.
        """
        for network in self.archive.definition.network:
            if network.name == name:
                return network
        raise NNPError(
            f"{self.archive.path}: there is no network {name!r}; the networks are: "
            f"{', '.join(self.networks)}"
        )

    def converted(self, assigned: Dict[str, Assignment]) -> NetworkFile:
        """A converted form of this float file: shares the weights, adds the layers' state."""
        parameters = dict(self.archive.parameters)
        for layer in self.layers:
            if is_rewritten(assigned[layer.name].mixture):
                parameters.update(initial_state(layer, assigned[layer.name].mixture))
        notes = {
            "format": FORMAT,
            "kind": CONVERTED,
            "nnabla_dqa": __version__,
            "source": {
                "file": self.archive.path.name,
                "sha256": hashlib.sha256(self.archive.path.read_bytes()).hexdigest(),
            },
            "layers": [
                {
                    "weight": layer.weight,
                    "function": layer.function,
                    "rule": assigned[layer.name].rule,
                    **assigned[layer.name].mixture.to_json(),
                }
                for layer in self.layers
            ],
        }
        definition = copy.deepcopy(self.archive.definition)
        archive = dataclasses.replace(
            self.archive, definition=definition, parameters=parameters, metadata=notes
        )
        return NetworkFile(archive, self.layers, self.untouched, assigned)

    def save(self, path: PathLike) -> int:
        """Write the file, mixtures included; returns its size in bytes."""
        text = definition_text(self.archive.definition, self.quantized, self.mixtures)
        return self.archive.write(path, text)

    def with_parameters(self, parameters: Dict[str, Parameter]) -> NetworkFile:
        """The same networks with other values in their parameters."""
        archive = dataclasses.replace(self.archive, parameters=parameters)
        return dataclasses.replace(self, archive=archive)

    def _check_state(self) -> None:
        """State and metadata must belong together."""
        path, parameters = self.archive.path, self.archive.parameters
        known: Set[str] = set()
        for layer in self.rewritten:
            mixture = self.assigned[layer.name].mixture
            wanted = initial_state(layer, mixture)
            known.update(wanted)
            others = [name for name in parameters if name.startswith(_configs(layer))]
            if others and not set(others) <= set(wanted):
                raise NNPError(
                    f"{path}: the state of layer {layer.name} is that of other quantizers than "
                    f"{METADATA} says ({mixture})"
                )
            for name, (array, _) in wanted.items():
                found = parameters.get(name)
                if found is None or found.array.shape != array.shape:
                    raise NNPError(f"{path}: parameter {name} of shape {array.shape} is missing")
        foreign = [n for n in parameters if f"{STATE_SCOPE}/{CONFIG}/" in n and n not in known]
        if foreign:
            raise NNPError(
                f"{path}: {foreign[0]} is the state of a layer that {METADATA} does not list; use "
                f"a file made by nnabla-dqa"
            )

    def quantizer_state(self, layer: FileLayer, index: int) -> Dict[str, np.ndarray]:
        """The arrays of one quantizer of a layer, by name."""
        scope = f"{state_path(layer.weight)}/{index}/"
        return {
            name[len(scope) :]: parameter.array
            for name, parameter in self.archive.parameters.items()
            if name.startswith(scope)
        }

    @property
    def steps(self) -> int:
        """Updates that training has counted."""
        step = self.archive.parameters.get(f"{STATE_SCOPE}/step")
        known = step is not None and np.isfinite(step.array).all()
        return int(step.array[0]) if step is not None and known else 0

    @property
    def is_trained(self) -> bool:
        """Whether a training has finished on this file, or counted updates."""
        return self.steps > 0 or "training" in (self.archive.metadata or {})

    @property
    def rewritten(self) -> List[FileLayer]:
        """The layers whose weights are quantized at all."""
        return [layer for layer in self.quantized if is_rewritten(self.mixtures[layer.name])]


def _configs(layer: FileLayer) -> str:
    return f"{state_path(layer.weight)}/{CONFIG}/"


def _noted(archive: Archive) -> Dict[str, Assignment]:
    """What the notes of a converted file say, by the weights; empty for a deployed one."""
    notes: Dict[str, Any] = archive.metadata or {}
    where = f"{archive.path}: {METADATA}"
    if notes.get("format") != FORMAT:
        raise NNPError(
            f"{where} has format {notes.get('format')!r}; this version of nnabla_dqa reads {FORMAT}"
        )
    if notes.get("kind") not in (CONVERTED, DEPLOYED):
        raise NNPError(f"{where} has kind {notes.get('kind')!r}, not {CONVERTED!r} or {DEPLOYED!r}")
    if notes["kind"] == DEPLOYED:
        for row in notes["layers"]:
            try:
                quantizer_from_json(row["quantizer"])
                ok = isinstance(row["weight"], str) and isinstance(row["attention"], list)
            except (AttributeError, KeyError, TypeError, ValueError):
                ok = False
            if not ok:
                raise NNPError(f"{where}: a layer's claim cannot be read")
        return {}
    noted: Dict[str, Assignment] = {}
    for row in notes["layers"]:
        try:
            weight = row["weight"]
            if not isinstance(weight, str) or weight in noted:
                raise ValueError(f"weight {weight!r} is no name, or told of twice")
            noted[weight] = Assignment(Mixture.from_json(row), str(row["rule"]))
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            what = f"{error} is missing" if isinstance(error, KeyError) else str(error)
            raise NNPError(f"{where} does not fit the file: {what}") from None
    if not noted:
        raise NNPError(f"{where} tells of no layer")
    return noted
