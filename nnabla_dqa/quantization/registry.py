"""Quantizers by name, for JSON, recipes and the command line."""

from __future__ import annotations

from nnabla_dqa._util.registry import Registry
from nnabla_dqa.quantization.base import Quantizer

QUANTIZERS: Registry[Quantizer] = Registry("quantizer")
register_quantizer = QUANTIZERS.register
quantizer_from_json = QUANTIZERS.from_json
