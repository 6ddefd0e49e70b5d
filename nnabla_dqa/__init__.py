"""DNN Quantization with Attention (arXiv 2103.13322) for NNabla.

Importing this package also makes the ``dqa_`` layers available from
``nnabla.parametric_functions``.
"""

import importlib
import sys
from typing import TYPE_CHECKING, Any, List

# First, because it imports NNabla in silence for `python -m nnabla_dqa`.
from nnabla_dqa._util import greeting as _greeting  # noqa: F401
from nnabla_dqa._util.renamed import warn_renamed
from nnabla_dqa._version import __version__ as __version__
from nnabla_dqa.backends import (
    BackendError,
    BackendWarning,
    available_backends,
    backend,
    current_backend,
    release_mixtures,
)
from nnabla_dqa.layers.load import load_weights
from nnabla_dqa.layers.scopes import hard, make_mixture, quantizers
from nnabla_dqa.layers.tensors import AttentionWarning, QuantizedTensor, find_quantized
from nnabla_dqa.mixing import (
    Attention,
    BinaryRelax,
    BinaryRelaxOriginal,
    MixingRule,
    Mixture,
    Single,
    register_mixing_rule,
)
from nnabla_dqa.parametric_functions import install
from nnabla_dqa.quantization import (
    BWN,
    LSBQ,
    LSQ,
    PACT,
    PARQ,
    QN,
    SAWB,
    TWN,
    EMAMinMax,
    Encoded,
    FullPrecision,
    MeanTernary,
    MinMax,
    QNActivation,
    Quantizer,
    Sign,
    SqueezeThreshold,
    register_quantizer,
)

if TYPE_CHECKING:
    from nnabla_dqa.budget.units import BudgetError
    from nnabla_dqa.export.deployed import Deployment
    from nnabla_dqa.export.errors import ExportError
    from nnabla_dqa.export.files import export_file
    from nnabla_dqa.export.nnb import NnbFile
    from nnabla_dqa.export.onnx.sizes import OnnxFile
    from nnabla_dqa.export.packed.write import PackedFile
    from nnabla_dqa.graph.convert import convert
    from nnabla_dqa.graph.deploy import deploy
    from nnabla_dqa.graph.export import export_graph
    from nnabla_dqa.layers.report import Report, report
    from nnabla_dqa.layers.rules import Rule, Rules
    from nnabla_dqa.nnp.check import Check, check_file
    from nnabla_dqa.nnp.check_activations import ActivationCheck, check_activations
    from nnabla_dqa.nnp.convert import Conversion, NothingToConvertError, convert_file
    from nnabla_dqa.nnp.deploy import deploy_file
    from nnabla_dqa.nnp.summary import FileSummary, summarize
    from nnabla_dqa.nnp_format.members import NNPError
    from nnabla_dqa.onednn.accelerate import accelerate
    from nnabla_dqa.onednn.library import OneDnnError
    from nnabla_dqa.onednn.rebuild import Accelerated
    from nnabla_dqa.recipes.recipe import DataRecipe, Recipe, RecipeError
    from nnabla_dqa.regularization import regularizer
    from nnabla_dqa.schedules import (
        RelaxSchedule,
        SharpeningSchedule,
        SlopeSchedule,
        TemperatureSchedule,
        inverse_slope,
        temperature,
    )
    from nnabla_dqa.solver import Annealer, AttachedSolver, NonFiniteError, attach, check_finite
    from nnabla_dqa.training.result import Epoch, Training, TrainingStopped
    from nnabla_dqa.training.run import train
    from nnabla_dqa.training.tasks.exported import Verification, verify_export
    from nnabla_dqa.training.tasks.file_scores import Score, evaluate_file

install()

_LATER = {
    name: f"nnabla_dqa.{module}"
    for module, names in {
        "graph.convert": "convert",
        "export.deployed": "Deployment",
        "budget.units": "BudgetError",
        "export.files": "export_file",
        "export.errors": "ExportError",
        "export.nnb": "NnbFile",
        "export.onnx.sizes": "OnnxFile",
        "export.packed.write": "PackedFile",
        "graph.deploy": "deploy",
        "graph.export": "export_graph",
        "layers.report": "Report report",
        "layers.rules": "Rule Rules",
        "nnp_format.members": "NNPError",
        "nnp.check": "Check check_file",
        "nnp.check_activations": "ActivationCheck check_activations",
        "nnp.convert": "Conversion NothingToConvertError convert_file",
        "nnp.deploy": "deploy_file",
        "nnp.summary": "FileSummary summarize",
        "onednn.accelerate": "accelerate",
        "onednn.library": "OneDnnError",
        "onednn.rebuild": "Accelerated",
        "recipes.recipe": "DataRecipe Recipe RecipeError",
        "regularization": "regularizer",
        "schedules": "RelaxSchedule SharpeningSchedule SlopeSchedule TemperatureSchedule "
        "inverse_slope temperature",
        "solver": "Annealer AttachedSolver NonFiniteError attach check_finite",
        "training.result": "Epoch Training TrainingStopped",
        "training.run": "train",
        "training.tasks.exported": "Verification verify_export",
        "training.tasks.file_scores": "Score evaluate_file",
    }.items()
    for name in names.split()
}
"""Names that are loaded when they are first asked for: building layers does not wait for them."""


_RENAMED = {
    "FileDeployment": "Deployment",
    "Layer": "QuantizedTensor",
    "find_layers": "find_quantized",
}
"""Old names, which work for one more version."""


def __getattr__(name: str) -> Any:
    if name in _RENAMED:
        # `from nnabla_dqa import Layer` asks twice, first whether it is there.
        if sys._getframe(1).f_code.co_name != "_handle_fromlist":
            warn_renamed(f"nnabla_dqa.{name}", f"nnabla_dqa.{_RENAMED[name]}")
        name = _RENAMED[name]
        if name in globals():
            return globals()[name]
    if name not in _LATER:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(_LATER[name]), name)
    globals()[name] = value
    return value


def __dir__() -> List[str]:
    return sorted({*globals(), *_LATER})


__all__ = [
    "BWN",
    "LSBQ",
    "LSQ",
    "PACT",
    "PARQ",
    "QN",
    "SAWB",
    "TWN",
    "Accelerated",
    "ActivationCheck",
    "Annealer",
    "AttachedSolver",
    "Attention",
    "AttentionWarning",
    "BackendError",
    "BackendWarning",
    "BinaryRelax",
    "BinaryRelaxOriginal",
    "BudgetError",
    "Check",
    "Conversion",
    "DataRecipe",
    "Deployment",
    "EMAMinMax",
    "Encoded",
    "Epoch",
    "ExportError",
    "FileSummary",
    "FullPrecision",
    "MeanTernary",
    "MinMax",
    "MixingRule",
    "Mixture",
    "NNPError",
    "NonFiniteError",
    "NnbFile",
    "NothingToConvertError",
    "OneDnnError",
    "OnnxFile",
    "PackedFile",
    "QNActivation",
    "QuantizedTensor",
    "Quantizer",
    "Recipe",
    "RecipeError",
    "RelaxSchedule",
    "Report",
    "Rule",
    "Rules",
    "Score",
    "SharpeningSchedule",
    "Sign",
    "Single",
    "SlopeSchedule",
    "SqueezeThreshold",
    "TemperatureSchedule",
    "Training",
    "TrainingStopped",
    "Verification",
    "accelerate",
    "attach",
    "available_backends",
    "backend",
    "check_activations",
    "check_file",
    "check_finite",
    "convert",
    "convert_file",
    "current_backend",
    "deploy",
    "deploy_file",
    "evaluate_file",
    "export_file",
    "export_graph",
    "find_quantized",
    "hard",
    "inverse_slope",
    "load_weights",
    "make_mixture",
    "quantizers",
    "register_mixing_rule",
    "register_quantizer",
    "regularizer",
    "release_mixtures",
    "report",
    "summarize",
    "temperature",
    "train",
    "verify_export",
]
