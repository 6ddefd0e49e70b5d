"""Which weights of a deployed network are packed, and how: what makes the file smallest."""

from __future__ import annotations

import zlib
from typing import Any, Dict, List, Sequence, Tuple

import numpy as np

from nnabla_dqa.export.deployed import Deployed
from nnabla_dqa.export.errors import ExportError
from nnabla_dqa.export.packed.codes import MOST_BITS, Form, pack
from nnabla_dqa.export.tensor import DeployedTensor

_TENSOR_BYTES, _FORM_BYTES = 100, 2000
"""What the functions take in the deflated definition: of a tensor, and of a form of codes."""
_SAMPLE = 2**16
"""So many numbers say how well something deflates: all floats of a large net take a minute."""


def packable(deployed: Deployed) -> Tuple[Dict[Form, List[DeployedTensor]], Tuple[str, ...]]:
    """The tensors that are packed, by form, and lines that say why others are not.

    Raises:
        ExportError: A tensor is not on its levels.
    """
    by_levels: Dict[int, List[DeployedTensor]] = {}
    uneven, elsewhere = [], []
    for name, tensor in deployed.tensors.items():
        if tensor.quantizer.is_float or name not in deployed.parameters:
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
    small = []
    for form in list(groups):
        gains = {tensor.name: _gain(tensor, form) for tensor in groups[form]}
        if sum(gain for gain in gains.values() if gain > 0) <= _FORM_BYTES:
            small += [tensor.name for tensor in groups.pop(form)]
            continue
        small += [name for name, gain in gains.items() if gain <= 0]
        groups[form] = [tensor for tensor in groups[form] if gains[tensor.name] > 0]
    reasons = {
        f"not evenly spaced levels, or more than {MOST_BITS} bits": uneven,
        "in a loop, or in no network": elsewhere,
        "packing would not make the file smaller": small,
    }
    lines = [f"left float, {why}: {', '.join(names)}" for why, names in reasons.items() if names]
    return groups, tuple(lines)


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


def _gain(tensor: DeployedTensor, form: Form) -> int:
    """About how many bytes packing saves."""
    codes = codes_of([tensor])[:_SAMPLE]
    saved = deflated(tensor.array.ravel()[:_SAMPLE]) - deflated(pack(codes, form))
    # Scales and offsets of one set of levels stand in the definition.
    ranges = 8 * tensor.groups if tensor.groups > 1 else 0
    return saved * tensor.weights // codes.size - _TENSOR_BYTES - ranges


def _is_one_parameter(definition: Any, name: str) -> bool:
    """Whether the name is that of one parameter, not of one for each turn of a loop."""
    declared = [v for network in definition.network for v in network.variable if v.name == name]
    plain = all(v.type == "Parameter" and not v.repeat_id for v in declared)
    return bool(declared) and plain
