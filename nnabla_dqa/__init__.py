"""DNN Quantization with Attention (arXiv 2103.13322) for NNabla.

Importing this package also makes the ``dqa_`` layers available from
``nnabla.parametric_functions``.
"""

import importlib
from typing import TYPE_CHECKING, Any, List

from nnabla_dqa.backends import (
    BackendError,
    BackendWarning,
    available_backends,
    backend,
    current_backend,
    release_mixtures,
)
from nnabla_dqa.graph.deploy import Deployment, deploy
from nnabla_dqa.layers.report import Report, report
from nnabla_dqa.layers.scopes import hard, make_mixture, quantizers
from nnabla_dqa.layers.tensors import AttentionWarning, Layer, Mixture, find_layers
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
from nnabla_dqa.schedules import RelaxSchedule, TemperatureSchedule, temperature
from nnabla_dqa.solver import Annealer, AttachedSolver, NonFiniteError, attach, check_finite

if TYPE_CHECKING:
    from nnabla_dqa.graph.convert import convert
    from nnabla_dqa.layers.rules import Rule, Rules
    from nnabla_dqa.nnp.archive import NNPError
    from nnabla_dqa.nnp.check import Check, check_file
    from nnabla_dqa.nnp.convert import Conversion, NothingToConvertError, convert_file
    from nnabla_dqa.nnp.deploy import FileDeployment, deploy_file
    from nnabla_dqa.nnp.summary import FileSummary, summarize
    from nnabla_dqa.recipes.recipe import DataRecipe, Recipe, RecipeError
    from nnabla_dqa.training.result import Epoch, Training, TrainingStopped
    from nnabla_dqa.training.run import train
    from nnabla_dqa.training.tasks.file_scores import Score, evaluate_file

__version__ = "0.1.0"

install()

_LATER = {
    "NNPError": "nnabla_dqa.nnp.archive",
    "Check": "nnabla_dqa.nnp.check",
    "check_file": "nnabla_dqa.nnp.check",
    "Conversion": "nnabla_dqa.nnp.convert",
    "NothingToConvertError": "nnabla_dqa.nnp.convert",
    "convert_file": "nnabla_dqa.nnp.convert",
    "FileDeployment": "nnabla_dqa.nnp.deploy",
    "deploy_file": "nnabla_dqa.nnp.deploy",
    "FileSummary": "nnabla_dqa.nnp.summary",
    "summarize": "nnabla_dqa.nnp.summary",
    "convert": "nnabla_dqa.graph.convert",
    "Rule": "nnabla_dqa.layers.rules",
    "Rules": "nnabla_dqa.layers.rules",
    "Score": "nnabla_dqa.training.tasks.file_scores",
    "evaluate_file": "nnabla_dqa.training.tasks.file_scores",
    "train": "nnabla_dqa.training.run",
    "Epoch": "nnabla_dqa.training.result",
    "Training": "nnabla_dqa.training.result",
    "TrainingStopped": "nnabla_dqa.training.result",
    "DataRecipe": "nnabla_dqa.recipes.recipe",
    "Recipe": "nnabla_dqa.recipes.recipe",
    "RecipeError": "nnabla_dqa.recipes.recipe",
}
"""Names for NNP files: loaded when they are first asked for, model code does not need them."""


def __getattr__(name: str) -> Any:
    if name not in _LATER:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(_LATER[name]), name)
    globals()[name] = value
    return value


def __dir__() -> List[str]:
    return sorted({*globals(), *_LATER})


__all__ = [
    "BWN",
    "SAWB",
    "TWN",
    "Annealer",
    "AttachedSolver",
    "Attention",
    "AttentionWarning",
    "BackendError",
    "BackendWarning",
    "BinaryRelax",
    "Check",
    "Conversion",
    "DataRecipe",
    "Deployment",
    "Encoded",
    "Epoch",
    "FileDeployment",
    "FileSummary",
    "FullPrecision",
    "Layer",
    "MinMax",
    "MixingRule",
    "Mixture",
    "NNPError",
    "NonFiniteError",
    "NothingToConvertError",
    "Quantizer",
    "Recipe",
    "RecipeError",
    "RelaxSchedule",
    "Report",
    "Rule",
    "Rules",
    "Score",
    "Single",
    "TemperatureSchedule",
    "Training",
    "TrainingStopped",
    "attach",
    "available_backends",
    "backend",
    "check_file",
    "check_finite",
    "convert",
    "convert_file",
    "current_backend",
    "deploy",
    "deploy_file",
    "evaluate_file",
    "find_layers",
    "hard",
    "make_mixture",
    "quantizers",
    "register_quantizer",
    "regularizer",
    "release_mixtures",
    "report",
    "summarize",
    "temperature",
    "train",
]
