"""Mixing rules: how the quantizers of a tensor are combined. One module each."""

from nnabla_dqa.mixing.attention import Attention
from nnabla_dqa.mixing.base import MixingRule
from nnabla_dqa.mixing.binary_relax import BinaryRelax, BinaryRelaxOriginal
from nnabla_dqa.mixing.mixture import Mixture
from nnabla_dqa.mixing.registry import MIXING_RULES, mixing_rule_from_json, register_mixing_rule
from nnabla_dqa.mixing.single import Single

for _cls in (Attention, BinaryRelax, BinaryRelaxOriginal, Single):
    register_mixing_rule(_cls)

__all__ = [
    "MIXING_RULES",
    "Attention",
    "BinaryRelax",
    "BinaryRelaxOriginal",
    "MixingRule",
    "Mixture",
    "Single",
    "mixing_rule_from_json",
    "register_mixing_rule",
]
