"""What of a converted file is deployed: the networks that are run, and what these need."""

from __future__ import annotations

import copy
from typing import Any, List, Set

from nnabla_dqa.export.deployed import Deployed
from nnabla_dqa.layers.tensors import OF_TRAINING
from nnabla_dqa.nnp.expand import state_path
from nnabla_dqa.nnp.file import NetworkFile
from nnabla_dqa.nnp.inspect import running_networks
from nnabla_dqa.nnp.live import NORMALIZATION
from nnabla_dqa.nnp_format.archive import keep_only
from nnabla_dqa.nnp_format.members import VERSION, NNPError

_RANDOM = ("Dropout", "ImageAugmentation", "RandomCrop", "RandomErase", "RandomFlip", "RandomShift")
"""What belongs into networks that train."""


def kept(file: NetworkFile, whole: bool, messages: List[str]) -> Deployed:
    """What is kept, with float weights; the mixtures and their state are gone."""
    definition = copy.deepcopy(file.archive.definition)
    others = dict(file.archive.others)
    _set_to_run(definition, messages)
    if not whole:
        names = running_networks(definition)
        if not names:
            raise NNPError(
                f"{file.archive.path}: has no executor and trains every network "
                f"({', '.join(file.networks)}); keep all with --whole"
            )
        left = [n.name for n in definition.network if n.name not in names]
        keep_only(definition.network, lambda network: network.name in names)
        for section in ("optimizer", "monitor", "dataset", "training_config"):
            definition.ClearField(section)
        unknown = [name for name in others if name != VERSION]
        others = {VERSION: others[VERSION]} if VERSION in others else {}
        parts = [f"networks {', '.join(left)}"] if left else []
        parts += [f"members {', '.join(unknown)}"] if unknown else []
        if parts:
            messages.append(f"left out, not needed to run: {'; '.join(parts)}")
    scopes = tuple(f"{state_path(layer.weight)}/" for layer in file.quantized)
    parameters = {
        name: parameter
        for name, parameter in file.archive.parameters.items()
        if not name.startswith(scopes) and name not in OF_TRAINING
    }
    source = (file.archive.metadata or {}).get("source")
    return Deployed(definition, parameters, {}, source=source, others=others)


def _set_to_run(definition: Any, messages: List[str]) -> None:
    """Running statistics in the networks that are run; names what else in them is random."""
    runs = running_networks(definition)
    for network in definition.network:
        if network.name not in runs:
            continue
        for function in network.function:
            field = NORMALIZATION.get(function.type)
            if field is not None and getattr(function, field).batch_stat:
                getattr(function, field).batch_stat = False
                messages.append(
                    f"network {network.name}: {function.name} normalizes by running statistics "
                    f"now, because the network is run"
                )
            if function.type in _RANDOM:
                messages.append(
                    f"network {network.name}: {function.name} ({function.type}) is kept: its "
                    f"outputs are random"
                )


def drop_unused(deployed: Deployed) -> None:
    """Take out what no kept function uses: variables, parameters, and their mention."""
    used: Set[str] = set()
    for network in deployed.definition.network:
        used |= {name for f in network.function for name in (*f.input, *f.output)}
    for network in deployed.definition.network:
        keep_only(network.variable, lambda variable: variable.name in used)
    names = {network.name for network in deployed.definition.network}
    keep_only(deployed.definition.executor, lambda executor: executor.network_name in names)
    for section in (*deployed.definition.executor, *deployed.definition.optimizer):
        keep_only(section.parameter_variable, lambda listed: listed.variable_name in used)
    deployed.parameters = {k: v for k, v in deployed.parameters.items() if k in used}
    deployed.tensors = {k: v for k, v in deployed.tensors.items() if k in used}


def check_run(file: NetworkFile) -> None:
    """Raise NNPError if quantized layers are in no network that is run; all may be float."""
    runs = running_networks(file.archive.definition)
    uses = [use for layer in file.rewritten for use in layer.uses]
    if runs and uses and not any(use.network in runs for use in uses):
        raise NNPError(
            f"{file.archive.path}: no quantized layer is in the network that is run "
            f"({', '.join(runs)})"
        )
