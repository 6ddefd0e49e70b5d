"""Pictures of matplotlib as SVG inside a page: its colours, its text, light and dark."""

from __future__ import annotations

import contextlib
import importlib
import io
import re
import warnings
from typing import Any, Iterator, Optional, Sequence, Tuple

from nnabla_dqa.reporting.page.html import Markup, element, escape, plain
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
_STROKES = (None, "8 4", "2 3", "8 3 2 3", "6 2 2 2 2 2")
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
def drawing(
    size: Tuple[float, float] = WIDE, margins: Optional[Tuple[float, float, float, float]] = None
) -> Iterator[Any]:
    """A matplotlib figure in the style of the page, for :func:`embedded` inside the block.

    Args:
        size: In inches.
        margins: Left, bottom, right and top of what is drawn, as shares of the size; default: as
            labels need it, which takes twice the time.
    """
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
    }
    with matplotlib.rc_context(style), warnings.catch_warnings():
        # The browser has other fonts than the one that lays the picture out.
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        figure = Figure(figsize=size, layout="constrained" if margins is None else None)
        if margins is not None:
            figure.subplots_adjust(*margins)
        yield figure


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
    inner = re.sub(r' id="([^"]+)"', lambda m: _identity(m, used), inner)
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


def legend(names: Sequence[str]) -> Markup:
    """What each line of a picture is, in the order of :data:`SERIES`; wraps where it is narrow."""
    entries = []
    for k, name in enumerate(names):
        stroke = f"stroke:var(--series-{k % len(SERIES) + 1});stroke-width:2"
        line = element(
            "path", d="M0 5H30", style=stroke, stroke_dasharray=_STROKES[k % len(SERIES)]
        )
        sample = element("svg", line, viewBox="0 0 30 10", aria_hidden="true")
        entries.append(element("li", sample, name))
    return element("ul", *entries, class_="legend")


def whole_ticks(axis: Any) -> None:
    """Whole numbers along x."""
    from matplotlib.ticker import MaxNLocator

    axis.xaxis.set_major_locator(MaxNLocator(nbins=7, integer=True))
