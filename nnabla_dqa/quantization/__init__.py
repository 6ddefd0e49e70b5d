"""Quantizers: one module each. ``docs/quantizers.md`` compares them."""

from nnabla_dqa.quantization.activations.ema_minmax import EMAMinMax
from nnabla_dqa.quantization.activations.pact import PACT
from nnabla_dqa.quantization.activations.sign import Sign
from nnabla_dqa.quantization.activations.squeeze_threshold import SqueezeThreshold
from nnabla_dqa.quantization.base import Grid, Levels, Quantizer, StateEntry
from nnabla_dqa.quantization.bwn import BWN
from nnabla_dqa.quantization.encoding import Encoded
from nnabla_dqa.quantization.full_precision import FullPrecision
from nnabla_dqa.quantization.lsq import LSQ
from nnabla_dqa.quantization.minmax import MinMax
from nnabla_dqa.quantization.neighbours.lsbq import LSBQ
from nnabla_dqa.quantization.neighbours.mean_ternary import MeanTernary
from nnabla_dqa.quantization.neighbours.parq import PARQ
from nnabla_dqa.quantization.qn.activations import QNActivation
from nnabla_dqa.quantization.qn.weights import QN
from nnabla_dqa.quantization.registry import quantizer_from_json, register_quantizer
from nnabla_dqa.quantization.sawb import SAWB
from nnabla_dqa.quantization.statistics import Statistics
from nnabla_dqa.quantization.twn import TWN

for _cls in (
    *(MinMax, SAWB, BWN, TWN, LSQ, FullPrecision),
    *(EMAMinMax, PACT, Sign, QNActivation, SqueezeThreshold),
    *(MeanTernary, LSBQ, PARQ, QN),
):
    register_quantizer(_cls)

__all__ = [
    "BWN",
    "LSBQ",
    "LSQ",
    "PACT",
    "PARQ",
    "QN",
    "SAWB",
    "TWN",
    "EMAMinMax",
    "Encoded",
    "FullPrecision",
    "Grid",
    "Levels",
    "MeanTernary",
    "MinMax",
    "QNActivation",
    "Quantizer",
    "Sign",
    "SqueezeThreshold",
    "StateEntry",
    "Statistics",
    "quantizer_from_json",
    "register_quantizer",
]
