"""Mixing rules by name, for JSON, recipes and the command line."""

from __future__ import annotations

from nnabla_dqa._util.registry import Registry
from nnabla_dqa.mixing.base import MixingRule

MIXING_RULES: Registry[MixingRule] = Registry("mixing rule", "nnabla_dqa.mixing_rules")
register_mixing_rule = MIXING_RULES.register
mixing_rule_from_json = MIXING_RULES.from_json
