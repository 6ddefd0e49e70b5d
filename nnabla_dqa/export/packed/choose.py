"""Which weights of a deployed network are packed, and how: what makes the file smallest."""

from __future__ import annotations

import zlib
from typing import Any, Dict, List, NamedTuple, Sequence, Tuple

import numpy as np

from nnabla_dqa.export.deployed import Deployed
from nnabla_dqa.export.errors import ExportError
from nnabla_dqa.export.packed.codes import MOST_BITS, Form, pack
from nnabla_dqa.export.tensor import DeployedTensor

_TENSOR_BYTES, _FORM_BYTES = 100, 1200
"""About what the functions of a tensor, and of a form, take in the deflated definition."""
NOT_SMALLER = "packing would not make the file smaller"
_SAMPLE = 2**16
"""So many numbers say how well something deflates: all floats of a large net take a minute."""


class Choice(NamedTuple):
    """What is packed.

    Attributes:
        groups: The tensors, by form.
        saved: About how many bytes of parameters that saves.
        messages: Lines that say why others are not packed.
    """

    groups: Dict[Form, List[DeployedTensor]]
    saved: int
    messages: Tuple[str, ...]


def choose(deployed: Deployed) -> Choice:
    """The tensors that are packed so that the file gets smaller.

    Raises:
        ExportError: A tensor is not on its levels.
    """
    by_levels: Dict[int, List[DeployedTensor]] = {}
    uneven, elsewhere = [], []
    for name, tensor in deployed.tensors.items():
        if tensor.quantizer.is_float or not tensor.weights or name not in deployed.parameters:
            continue
        fault = tensor.fault()
        if fault:
            raise ExportError(f"parameter {name} is not on the levels that are stated: {fault}")
        if tensor.levels is not None or tensor.bits > MOST_BITS:
            uneven.append(name)
        elif not _is_one_parameter(deployed.definition, name):
            elsewhere.append(name)
        else:
            by_levels.setdefault(tensor.quantizer.levels, []).append(tensor)
    groups: Dict[Form, List[DeployedTensor]] = {}
    for levels, tensors in by_levels.items():
        groups.setdefault(_smallest(levels, tensors), []).extend(tensors)
    small: List[str] = []
    total = 0
    for form, tensors in list(groups.items()):
        groups[form] = [t for t in tensors if _saved([t], form) > _TENSOR_BYTES]
        saved = _saved(groups[form], form) if groups[form] else 0
        if saved > _FORM_BYTES + _TENSOR_BYTES * len(groups[form]):
            total += saved
        else:
            del groups[form]
        kept = {t.name for t in groups.get(form, ())}
        small += [t.name for t in tensors if t.name not in kept]
    reasons = {
        f"not evenly spaced levels, or more than {MOST_BITS} bits": uneven,
        "in a loop, or in no network": elsewhere,
        NOT_SMALLER: small,
    }
    lines = [f"left float, {why}: {', '.join(names)}" for why, names in reasons.items() if names]
    return Choice(groups, total, tuple(lines))


def codes_of(tensors: Sequence[DeployedTensor]) -> np.ndarray:
    """The codes of all, one after the other."""
    codes = [tensor.codes for tensor in tensors]
    return np.concatenate([c.ravel() for c in codes if c is not None])


def deflated(array: np.ndarray) -> int:
    """How many bytes an array takes in a deflated file."""
    return len(zlib.compress(array.astype("<f4").tobytes(), 9))


def _smallest(levels: int, tensors: Sequence[DeployedTensor]) -> Form:
    codes = codes_of(tensors)
    sample = codes[:: -(-codes.size // (4 * _SAMPLE))]
    return min(Form.all_of(levels), key=lambda form: deflated(pack(sample, form)))


def _saved(tensors: Sequence[DeployedTensor], form: Form) -> int:
    """About how many bytes of parameters packing saves."""
    total = sum(tensor.weights for tensor in tensors)
    parts = [slice(-(-_SAMPLE * tensor.weights // total)) for tensor in tensors]
    floats = np.concatenate([t.array.ravel()[part] for t, part in zip(tensors, parts)])
    codes = np.concatenate([codes_of([t])[part] for t, part in zip(tensors, parts)])
    saved = deflated(floats) - deflated(pack(codes, form))
    # Scales and offsets of one set of levels stand in the definition.
    return saved * total // len(floats) - sum(
        8 * tensor.groups for tensor in tensors if tensor.groups > 1
    )


def _is_one_parameter(definition: Any, name: str) -> bool:
    """Whether the name is that of one parameter, not of one for each turn of a loop."""
    declared = [v for network in definition.network for v in network.variable if v.name == name]
    plain = all(v.type == "Parameter" and not v.repeat_id for v in declared)
    return bool(declared) and plain
