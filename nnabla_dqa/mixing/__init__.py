"""Mixing rules: how the quantizers of a layer are combined. One module each."""

from nnabla_dqa._util.registry import Registry
from nnabla_dqa.mixing.attention import Attention
from nnabla_dqa.mixing.base import MixingRule, StateEntry
from nnabla_dqa.mixing.binary_relax import BinaryRelax
from nnabla_dqa.mixing.single import Single

MIXING_RULES: Registry[MixingRule] = Registry("mixing rule", "nnabla_dqa.mixing_rules")
for _cls in (Attention, BinaryRelax, Single):
    MIXING_RULES.register(_cls)
register_mixing_rule = MIXING_RULES.register
mixing_rule_from_json = MIXING_RULES.from_json

__all__ = [
    "Attention",
    "BinaryRelax",
    "MixingRule",
    "Single",
    "StateEntry",
    "mixing_rule_from_json",
    "register_mixing_rule",
]
