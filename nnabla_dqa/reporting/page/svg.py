"""Pictures of matplotlib as SVG inside a page: its colours, its text, light and dark."""

from __future__ import annotations

import contextlib
import importlib
import io
import re
import warnings
from typing import Any, Iterator, Sequence, Tuple

from nnabla_dqa.reporting.page.html import Markup, escape, plain
from nnabla_dqa.reporting.page.style import PICTURE

INSTALL = "pip install 'nnabla_dqa[report]'"
WIDE = (4.9, 2.9)
SMALL = (3.7, 2.1)
"""Sizes in inches; the page scales them to its columns."""

# Colours that matplotlib writes, and what of the page's style they become.
_VARIABLES = {
    "#010101": "ink",
    "#010102": "muted",
    "#010103": "grid",
    "#010104": "shade",
    "#010105": "bad",
    **{f"#0101{0x10 + i}": f"series-{i}" for i in range(1, 6)},
}
INK, MUTED, GRID, SHADE, BAD = list(_VARIABLES)[:5]
SERIES = list(_VARIABLES)[5:]
DASHES: Sequence[Any] = ("solid", (0, (5, 2)), (0, (1, 1.5)), "dashdot", (0, (3, 1, 1, 1, 1, 1)))
"""Lines differ by more than colour."""


class ReportError(ValueError):
    """A report cannot be made; one line says why."""


class MatplotlibMissingError(ImportError, ReportError):
    """matplotlib is not installed; the message says what to install."""


def check_matplotlib() -> None:
    """Raise MatplotlibMissingError if there is no matplotlib."""
    try:
        importlib.import_module("matplotlib")
    except ImportError as error:
        raise MatplotlibMissingError(
            f"the pictures of a report need the package matplotlib, which cannot be imported "
            f"({error}): {INSTALL}"
        ) from None


@contextlib.contextmanager
def drawing(size: Tuple[float, float] = WIDE) -> Iterator[Any]:
    """A matplotlib figure in the style of the page, for :func:`embedded` inside the block."""
    check_matplotlib()
    import matplotlib
    from matplotlib.figure import Figure

    style = {
        "svg.fonttype": "none",
        "svg.hashsalt": "nnabla_dqa",
        # Names of layers are no formulas.
        "text.parse_math": False,
        "font.size": 10.5,
        "text.color": INK,
        "axes.labelcolor": INK,
        "axes.edgecolor": MUTED,
        "axes.labelsize": 10.5,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "axes.grid.axis": "y",
        "axes.axisbelow": True,
        "grid.color": GRID,
        "grid.linewidth": 0.6,
        "xtick.color": MUTED,
        "ytick.color": MUTED,
        "xtick.labelcolor": INK,
        "ytick.labelcolor": INK,
        "axes.facecolor": "none",
        "figure.facecolor": "none",
        "legend.frameon": False,
        "legend.fontsize": 9.5,
    }
    with matplotlib.rc_context(style), warnings.catch_warnings():
        # The browser has other fonts than the one that lays the picture out.
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        yield Figure(figsize=size, layout="constrained")


def embedded(figure: Any, title: str, description: str) -> Markup:
    """A figure as SVG for a page: scales, takes the page's colours, and says what it shows."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    box = re.search(r'viewBox="[^"]*"', text)
    assert box is not None
    inner = text[text.index(">") + 1 : text.rindex("</svg>")]
    # Its style would be that of the whole page.
    inner = re.sub(
        r"<metadata>.*?</metadata>|<style[^>]*>.*?</style>|<!--.*?-->", "", inner, flags=re.S
    )
    used = set(re.findall(r"(?:url\(#|href=\"#)([\w-]+)", inner))
    inner = re.sub(r' id="([\w-]+)"', lambda m: _identity(m, used), inner)
    inner = re.sub(r"(url\(#|href=\"#)", rf"\1{PICTURE}", inner)
    inner = re.sub(r"'DejaVu Sans'[^;\"]*", "system-ui, sans-serif", inner)
    for colour, name in _VARIABLES.items():
        inner = inner.replace(colour, f"var(--{name})")
    label = escape(f"{plain(title)}. {plain(description)}")
    return Markup(f'<svg {box[0]} role="img" aria-label="{label}">{inner}</svg>')


def _identity(match: Any, used: Any) -> str:
    return f' id="{PICTURE}{match[1]}"' if match[1] in used else ""


def shortened(name: str, most: int = 24) -> str:
    """A name with its middle left out if it is long: for labels, whose tables have the whole."""
    text = plain(name)
    return text if len(text) <= most else f"{text[: most // 2 - 1]}…{text[-(most // 2) :]}"


def legend_above(axis: Any, columns: int = 3) -> None:
    """The legend of an axis above it, where no curve is."""
    handles, labels = axis.get_legend_handles_labels()
    if handles:
        axis.legend(
            handles,
            labels,
            loc="lower left",
            bbox_to_anchor=(0, 1.0),
            ncols=columns,
            borderaxespad=0.2,
            handlelength=2.4,
            columnspacing=1.2,
        )


def whole_ticks(axis: Any) -> None:
    """Whole numbers along x."""
    from matplotlib.ticker import MaxNLocator

    axis.xaxis.set_major_locator(MaxNLocator(nbins=7, integer=True))
