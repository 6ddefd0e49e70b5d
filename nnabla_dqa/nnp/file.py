"""An NNP with what this package knows about it: its layers and what their weights go through.

In memory the networks use their weights directly. The functions of the
mixtures exist only in the file: they are taken out when it is read and written
out when it is saved.
"""

from __future__ import annotations

import copy
import dataclasses
import hashlib
from typing import Any, Dict, List, Mapping, Optional, Set, Tuple

import numpy as np

from nnabla_dqa._util.files import PathLike
from nnabla_dqa._version import __version__
from nnabla_dqa.export.metadata import DEPLOYED, FORMAT, PACKED, check_format
from nnabla_dqa.export.nnp import deployed_of
from nnabla_dqa.layers.config import ACTIVATION, CONFIG
from nnabla_dqa.layers.rules import Assignment
from nnabla_dqa.layers.tensors import INPUT, STATE_SCOPE
from nnabla_dqa.mixing import Mixture
from nnabla_dqa.mixing.mixture import CHOSEN
from nnabla_dqa.nnp.expand import (
    definition_text,
    initial_state,
    is_rewritten,
    remove_mixtures,
    state_path,
)
from nnabla_dqa.nnp.layers import FileLayer, Skipped, discover
from nnabla_dqa.nnp_format.archive import METADATA, Archive
from nnabla_dqa.nnp_format.members import NNPError
from nnabla_dqa.nnp_format.parameters import Parameter
from nnabla_dqa.quantization.registry import UnknownQuantizer, quantizer_or_stand_in

FLOAT, CONVERTED = "float", "converted"


@dataclasses.dataclass
class NetworkFile:
    """An NNP: plain ("float"), converted or deployed.

    ``layers`` are the layers that could be or are quantized, ``assigned`` what
    the weights of a converted file's layers go through, by the layers' names.
    """

    archive: Archive
    layers: List[FileLayer]
    skipped: List[Skipped]
    assigned: Dict[str, Assignment]

    @classmethod
    def read(cls, path: PathLike, max_bytes: Optional[int] = None) -> NetworkFile:
        """Read an NNP of any kind.

        In a converted file, quantizers of a class that is not known here are
        stand-ins, which can be shown but not used (:meth:`check_quantizers`).

        Args:
            path: The file.
            max_bytes: What it may unpack to; the default is that of
                :meth:`nnabla_dqa.nnp_format.archive.Archive.read`.

        Raises:
            NNPError: It is no NNP, broken, or its metadata do not fit its networks.
            OSError: It cannot be read.
        """
        archive = Archive.read(path, max_bytes)
        assigned: Dict[str, Assignment] = {}
        found = _assignments(archive) if archive.metadata is not None else {}
        try:
            remove_mixtures(archive.definition, list(found))
        except ValueError as error:
            raise NNPError(f"{path}: {METADATA} does not fit the file: {error}") from None
        layers, skipped = discover(archive.definition, archive.parameters)
        if found:
            known = {layer.weight: layer.name for layer in layers}
            missing = [weight for weight in found if weight not in known]
            if missing:
                raise NNPError(
                    f"{path}: {METADATA} says that {missing[0]} is quantized, but no layer uses it"
                )
            assigned = {
                known[weight]: assignment._replace(input_of=known.get(assignment.input_of, ""))
                for weight, assignment in found.items()
            }
        file = cls(archive, layers, skipped, assigned)
        if file.kind == CONVERTED and archive.metadata and archive.metadata["format"] == 1:
            file._renew_state()
        file._check_state()
        return file

    @property
    def kind(self) -> str:
        """``"float"``, ``"converted"``, ``"deployed"`` or ``"packed"``."""
        return FLOAT if self.archive.metadata is None else str(self.archive.metadata["kind"])

    @property
    def mixtures(self) -> Dict[str, Mixture]:
        """The mixture of each layer of a converted file, by its name."""
        return {name: assignment.mixture for name, assignment in self.assigned.items()}

    @property
    def all_mixtures(self) -> Dict[str, Mixture]:
        """:attr:`mixtures` and those of what enters layers, ``conv1/conv:input``."""
        assigned = self.assigned.items()
        entering = {
            name + INPUT: a.activations for name, a in assigned if a.activations is not None
        }
        return {**self.mixtures, **entering}

    @property
    def quantized(self) -> List[FileLayer]:
        """The layers of a converted file, also those that a rule keeps float."""
        return [layer for layer in self.layers if layer.name in self.assigned]

    def input_owner(self, layer: FileLayer) -> Optional[FileLayer]:
        """The layer whose quantizers what enters ``layer`` goes through, None if it is float.

        It is ``layer`` itself, or the first of several that read the same.
        """
        assigned = self.assigned.get(layer.name)
        if assigned is None or not (assigned.activations or assigned.input_of):
            return None
        name = assigned.input_of or layer.name
        return next(other for other in self.layers if other.name == name)

    def check_quantizers(self) -> None:
        """Raise NNPError if the class of a quantizer is not known; names it and what helps."""
        for name, mixture in self.all_mixtures.items():
            for quantizer in mixture.quantizers:
                if isinstance(quantizer, UnknownQuantizer):
                    raise NNPError(f"{self.archive.path}: layer {name}: {quantizer.reason}")

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
            given = assigned[layer.name]
            if is_rewritten(given.mixture):
                weights = parameters[layer.weight].array
                parameters.update(initial_state(layer, given.mixture, given.activations, weights))
        names = {layer.name: layer.weight for layer in self.layers}
        metadata = {
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
                    "bits": [q.bits for q in assigned[layer.name].mixture.quantizers],
                    **assigned[layer.name].mixture.to_json(),
                    **_activations_to_json(assigned[layer.name], names),
                }
                for layer in self.layers
            ],
        }
        definition = copy.deepcopy(self.archive.definition)
        archive = dataclasses.replace(
            self.archive, definition=definition, parameters=parameters, metadata=metadata
        )
        return NetworkFile(archive, self.layers, self.skipped, assigned)

    def save(self, path: PathLike) -> int:
        """Write the file, mixtures included; returns its size in bytes."""
        text = definition_text(self.archive.definition, self.quantized, self.mixtures)
        return self.archive.write(path, text)

    def with_parameters(self, parameters: Dict[str, Parameter]) -> NetworkFile:
        """The same networks with other values in their parameters."""
        archive = dataclasses.replace(self.archive, parameters=parameters)
        return dataclasses.replace(self, archive=archive)

    def _renew_state(self) -> None:
        """Files of format 1 had the bits and a checksum where the configuration is now."""
        parameters = self.archive.parameters
        for layer in self.rewritten:
            mixture = self.mixtures[layer.name]
            old = parameters.pop(f"{state_path(layer.weight)}/quantizers", None)
            bits = [] if old is None else old.array[:-1].tolist()
            if mixture.is_mixed and bits != [q.bits for q in mixture.quantizers]:
                raise NNPError(
                    f"{self.archive.path}: the state of layer {layer.name} is that of other "
                    f"quantizers than {METADATA} says ({mixture})"
                )
            wanted = initial_state(layer, mixture)
            configs = {k: v for k, v in wanted.items() if k.startswith(_configs(layer))}
            parameters.update(configs)
        assert self.archive.metadata is not None
        self.archive.metadata["format"] = FORMAT

    def _check_state(self) -> None:
        """State and metadata must belong together."""
        path, parameters = self.archive.path, self.archive.parameters
        known: Set[str] = set()
        for layer in self.rewritten:
            mixture, inputs = (
                self.assigned[layer.name].mixture,
                self.assigned[layer.name].activations,
            )
            wanted = initial_state(layer, mixture, inputs)
            known.update(wanted)
            scopes = (_configs(layer), f"{activation_path(layer)}/{CONFIG}/")
            others = [name for name in parameters if name.startswith(scopes)]
            if others and not set(others) <= set(wanted):
                raise NNPError(
                    f"{path}: the state of layer {layer.name} is that of other quantizers than "
                    f"{METADATA} says ({mixture})"
                )
            for name, (array, _) in wanted.items():
                found = parameters.get(name)
                if found is None or found.array.shape != array.shape:
                    raise NNPError(f"{path}: parameter {name} of shape {array.shape} is missing")
            chosen = parameters.get(name := f"{state_path(layer.weight)}/{CHOSEN}")
            if chosen is not None and not mixture.is_choice(chosen.array):
                raise NNPError(
                    f"{path}: parameter {name} does not choose one of {len(mixture.quantizers)} "
                    f"quantizers"
                )
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

    def activation_state(self, layer: FileLayer) -> Dict[str, np.ndarray]:
        """The arrays of what enters a layer, by their paths in its state scope."""
        mixture, scope = self.assigned[layer.name].activations, activation_path(layer)
        layout = {} if mixture is None else mixture.state_layout(layer.shape, ACTIVATION)
        return {path: self.archive.parameters[f"{scope}/{path}"].array for path in layout}

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


def activation_path(layer: FileLayer) -> str:
    """The path of the scope with the state of what enters a layer."""
    return f"{state_path(layer.weight)}/{ACTIVATION}"


def _activations_to_json(assigned: Assignment, weights: Mapping[str, str]) -> Dict[str, Any]:
    mixture = assigned.activations
    if mixture is None:
        return {"input_of": weights[assigned.input_of]} if assigned.input_of else {}
    return {"activations": {"bits": [q.bits for q in mixture.quantizers], **mixture.to_json()}}


def _configs(layer: FileLayer) -> str:
    return f"{state_path(layer.weight)}/{CONFIG}/"


def _assignments(archive: Archive) -> Dict[str, Assignment]:
    """What the metadata of a converted file say, by the weights; empty for other kinds."""
    metadata: Dict[str, Any] = archive.metadata or {}
    where = f"{archive.path}: {METADATA}"
    check_format(archive)
    if metadata.get("kind") not in (CONVERTED, DEPLOYED, PACKED):
        raise NNPError(
            f"{where} has kind {metadata.get('kind')!r}, not {CONVERTED!r}, {DEPLOYED!r} or "
            f"{PACKED!r}"
        )
    if metadata["kind"] == PACKED:
        return {}
    if metadata["kind"] == DEPLOYED:
        deployed_of(archive)
        return {}
    found: Dict[str, Assignment] = {}
    for row in metadata.get("layers", []):
        try:
            weight = row["weight"]
            if not isinstance(weight, str) or weight in found:
                raise ValueError(f"weight {weight!r} is no name, or listed twice")
            inputs = row.get("activations")
            activations = None if inputs is None else _mixture(inputs)
            of = str(row.get("input_of", ""))
            found[weight] = Assignment(_mixture(row), str(row["rule"]), activations, of)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            what = f"{error} is missing" if isinstance(error, KeyError) else str(error)
            raise NNPError(f"{where} does not fit the file: {what}") from None
    if not found:
        raise NNPError(f"{where} lists no layer")
    for weight, assignment in found.items():
        owner = found.get(assignment.input_of)
        if assignment.input_of and (owner is None or owner.activations is None):
            raise NNPError(
                f"{where} does not fit the file: what enters the layer of {weight} is that of "
                f"{assignment.input_of}, at which nothing is quantized"
            )
    return found


def _mixture(row: Any) -> Mixture:
    quantizers = row["quantizers"]
    # Files of format 1 do not have the bits, of which a class may be sure itself.
    bits = row.get("bits") or [None] * len(quantizers)
    made = [quantizer_or_stand_in(q, b) for q, b in zip(quantizers, bits)]
    return Mixture.from_json({**row, "quantizers": made})
