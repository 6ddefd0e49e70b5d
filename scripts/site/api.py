"""MkDocs hook: the pages of the API reference, and links to them from names in the other pages.

Each public name of ``nnabla_dqa`` stands on one page; mkdocstrings writes its entry from the
docstring. ```dqa.name``` in the text of any page becomes a link to it.
"""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import Any, List

from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files

PAGES = {
    "quantizers": (
        "Quantizers",
        "What maps weights, or what enters a layer, to few levels. Compared in "
        "[Quantizers](../quantizers.md).",
        "MinMax SAWB BWN TWN LSQ QN LSBQ PARQ MeanTernary FullPrecision EMAMinMax PACT Sign "
        "QNActivation SqueezeThreshold Quantizer Encoded register_quantizer",
    ),
    "layers": (
        "Layers and mixtures",
        "Layers whose weights go through several quantizers, what mixes these, and what the "
        "layers are at any time. A tour: [In your model](../models.md).",
        "quantizers hard make_mixture Mixture MixingRule Attention BinaryRelax BinaryRelaxOriginal "
        "Single register_mixing_rule convert Rule Rules find_quantized QuantizedTensor report "
        "Report load_weights AttentionWarning",
    ),
    "training": (
        "Training",
        "Schedules, the penalty and the solver for a loop of your own; recipes for one command. "
        "See [In your model](../models.md) and [Experiments](../experiments.md).",
        "attach AttachedSolver Annealer regularizer BudgetError TemperatureSchedule temperature "
        "RelaxSchedule SharpeningSchedule SlopeSchedule inverse_slope check_finite NonFiniteError "
        "train Recipe DataRecipe RecipeError Training Epoch TrainingStopped",
    ),
    "files": (
        "Files",
        "Converting, deploying, proving and exporting. See [From an NNP to a 2-bit NNP]"
        "(../nnp.md) and [Export](../export.md).",
        "convert_file Conversion NothingToConvertError deploy deploy_file Deployment check_file "
        "Check check_activations ActivationCheck summarize FileSummary evaluate_file Score "
        "export_file export_graph verify_export Verification OnnxFile NnbFile PackedFile "
        "ExportError NNPError",
    ),
    "backends": (
        "What computes",
        "Compiled code or NNabla's functions. Costs: [Performance](../performance.md).",
        "backend current_backend available_backends release_mixtures accelerate Accelerated "
        "BackendError BackendWarning OneDnnError",
    ),
}
"""Title, introduction and names by page."""

ALONE = (
    "MinMax SAWB BWN TWN LSQ QN LSBQ PARQ MeanTernary FullPrecision EMAMinMax PACT Sign "
    "QNActivation SqueezeThreshold Attention BinaryRelax BinaryRelaxOriginal Single"
)
"""Classes whose methods are those of their base, which stands on the same page."""

LAYERS = "affine convolution depthwise_convolution deconvolution depthwise_deconvolution embed"

_NAME = re.compile(
    r"^(`{3,}).*?^\1[ \t]*$"  # A fenced block,
    r"|^(?:#|    )[^\n]*$"  # a heading and an indented block stay as they are.
    r"|(?<!\[)`dqa\.(\w+)(?:\([^`\n]*\))?`(?!\])",
    re.M | re.S,
)


def on_files(files: Files, config: Any) -> Files:
    """Add the pages ``api/*.md``."""
    public = public_names(Path(config.config_file_path).parent)
    shown = [name for _, _, names in PAGES.values() for name in names.split()]
    if sorted(shown) != sorted(public):
        wrong = sorted(set(shown) ^ set(public)) or "a name twice"
        raise PluginError(f"scripts/site/api.py: PAGES and nnabla_dqa.__all__ differ by {wrong}")
    for stem in PAGES:
        files.append(File.generated(config, f"api/{stem}.md", content=page_of(stem)))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Make links of public names."""
    if page.file.src_uri.startswith("api/"):
        return markdown
    public = set(public_names(Path(config.config_file_path).parent))
    return with_links(markdown, public)


def with_links(markdown: str, public: set[str]) -> str:
    """``markdown`` with links from ```dqa.name``` to the reference, but in headings and code."""

    def link(found: re.Match[str]) -> str:
        return f"[{found[0]}][nnabla_dqa.{found[2]}]" if found[2] in public else found[0]

    return _NAME.sub(link, markdown)


def page_of(stem: str) -> str:
    """The Markdown of a page of the reference."""
    title, about, names = PAGES[stem]
    entries = [_entry(f"nnabla_dqa.{name}", name in ALONE.split()) for name in names.split()]
    if stem == "layers":
        layers = [_entry(f"nnabla_dqa.parametric_functions.dqa_{n}") for n in LAYERS.split()]
        entries = [*entries[:2], *layers, *entries[2:]]
    return "\n\n".join([f"# {title}", about, *entries]) + "\n"


def _entry(name: str, alone: bool = False) -> str:
    """What mkdocstrings replaces by the docstring of ``name``, ``alone``: without its methods'."""
    return f"::: {name}" + ("\n    options: {members: false}" if alone else "")


def public_names(root: Path) -> List[str]:
    """``nnabla_dqa.__all__``, read without importing the package."""
    for node in ast.parse((root / "nnabla_dqa" / "__init__.py").read_text("utf-8")).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            return list(ast.literal_eval(node.value))
    raise PluginError("nnabla_dqa/__init__.py has no __all__")
