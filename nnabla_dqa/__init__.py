"""DNN Quantization with Attention (arXiv 2103.13322) for NNabla.

Importing this package also makes the ``dqa_`` layers available from
``nnabla.parametric_functions``.
"""

from nnabla_dqa.contexts import hard, make_mixture, quantizers
from nnabla_dqa.graph.deploy import deploy
from nnabla_dqa.layers import AttentionWarning, Layer, Mixture, find_layers
from nnabla_dqa.mixing import Attention, BinaryRelax, MixingRule, Single
from nnabla_dqa.parametric_functions import install
from nnabla_dqa.quantization import (
    BWN,
    SAWB,
    TWN,
    Encoded,
    FullPrecision,
    MinMax,
    Quantizer,
    register_quantizer,
)
from nnabla_dqa.regularization import regularizer
from nnabla_dqa.reporting import Report, report
from nnabla_dqa.schedules import RelaxSchedule, TemperatureSchedule, temperature
from nnabla_dqa.training import Annealer, AttachedSolver, NonFiniteError, attach, check_finite

__version__ = "0.1.0"

install()

__all__ = [
    "BWN",
    "SAWB",
    "TWN",
    "Annealer",
    "AttachedSolver",
    "Attention",
    "AttentionWarning",
    "BinaryRelax",
    "Encoded",
    "FullPrecision",
    "Layer",
    "MinMax",
    "Mixture",
    "MixingRule",
    "NonFiniteError",
    "Quantizer",
    "RelaxSchedule",
    "Report",
    "Single",
    "TemperatureSchedule",
    "attach",
    "check_finite",
    "deploy",
    "find_layers",
    "hard",
    "make_mixture",
    "quantizers",
    "register_quantizer",
    "regularizer",
    "report",
    "temperature",
]
