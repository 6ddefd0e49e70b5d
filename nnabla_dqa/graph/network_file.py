"""An NNP with what this package knows about it: its layers and what their weights go through.

In memory the networks use their weights directly. The functions of the
mixtures exist only in the file: they are taken out when it is read and written
out when it is saved.
"""

from __future__ import annotations

import copy
import dataclasses
import hashlib
from typing import Any, Dict, List, Tuple

from nnabla_dqa.files import PathLike
from nnabla_dqa.graph.archive import METADATA, Archive, NNPError
from nnabla_dqa.graph.discovery import FileLayer, Untouched, discover
from nnabla_dqa.graph.mixture_text import (
    definition_text,
    initial_state,
    is_rewritten,
    remove_mixtures,
    state_path,
)
from nnabla_dqa.graph.parameters import Parameter
from nnabla_dqa.graph.rules import Assignment
from nnabla_dqa.layers import STATE_SCOPE, Mixture

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
        notes = archive.metadata
        if notes is not None and notes.get("format") != FORMAT:
            raise NNPError(
                f"{path}: {METADATA} has format {notes.get('format')!r}; this version of "
                f"nnabla_dqa reads format {FORMAT}"
            )
        if notes is not None and notes.get("kind") == CONVERTED:
            try:
                by_weight = {
                    row["weight"]: Assignment(Mixture.from_json(row), str(row["rule"]))
                    for row in notes["layers"]
                }
                remove_mixtures(archive.definition, list(by_weight))
            except (KeyError, TypeError, ValueError) as error:
                raise NNPError(
                    f"{path}: {METADATA} does not fit the file: {_reason(error)}"
                ) from None
            layers, untouched = discover(archive.definition, archive.parameters)
            known = {layer.weight: layer.name for layer in layers}
            missing = [weight for weight in by_weight if weight not in known]
            if missing:
                raise NNPError(
                    f"{path}: {METADATA} says that {missing[0]} is quantized, but no layer uses it"
                )
            assigned = {known[weight]: assignment for weight, assignment in by_weight.items()}
        else:
            layers, untouched = discover(archive.definition, archive.parameters)
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
        from nnabla_dqa import __version__

        parameters = dict(self.archive.parameters)
        for layer in self.layers:
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
        """State and notes must belong together."""
        path, parameters = self.archive.path, self.archive.parameters
        for layer in self.quantized:
            mixture = self.assigned[layer.name].mixture
            for name, (array, _) in initial_state(layer, mixture).items():
                found = parameters.get(name)
                if found is None or found.array.shape != array.shape:
                    raise NNPError(f"{path}: parameter {name} of shape {array.shape} is missing")
        if self.kind != CONVERTED:
            for layer in self.layers:
                scope = state_path(layer.weight)
                if f"{scope}/quantizers" in parameters or f"{scope}/alpha" in parameters:
                    raise NNPError(
                        f"{path}: layer {layer.name} has parameters in {scope}, but the file has "
                        f"no {METADATA} that says what they are; use a file made by nnabla-dqa"
                    )

    @property
    def steps(self) -> int:
        """Updates that training has counted."""
        step = self.archive.parameters.get(f"{STATE_SCOPE}/step")
        return 0 if step is None else int(step.array[0])

    @property
    def is_trained(self) -> bool:
        """Whether a training has finished on this file, or counted updates."""
        return self.steps > 0 or "training" in (self.archive.metadata or {})

    @property
    def rewritten(self) -> List[FileLayer]:
        """The layers whose weights are quantized at all."""
        return [layer for layer in self.quantized if is_rewritten(self.mixtures[layer.name])]


def _reason(error: BaseException) -> str:
    return f"{error.args[0]} is missing" if isinstance(error, KeyError) else str(error)
