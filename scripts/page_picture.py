"""Takes the picture of an HTML page for the documentation, by a headless Chromium.

    nnabla-dqa report runs/a -o a.html
    python scripts/page_picture.py a.html docs/report_run.png --sections attention weights

Without --sections it is the top of the page. The PNG has a palette, so that it stays small.
"""

from __future__ import annotations

import argparse
import io
import sys
import tempfile
from pathlib import Path
from typing import Any, List

from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tests.reporting.browser import browser, find_browser

_BOX = "(() => {{ const b = document.getElementById('{}').getBoundingClientRect();"
_BOX += " return [Math.floor(b.top + scrollY), Math.ceil(b.bottom + scrollY)] }})()"


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("page", type=Path)
    parser.add_argument("picture", type=Path)
    parser.add_argument("--sections", nargs="+", default=[], help="their anchors")
    parser.add_argument("--width", type=int, default=1100)
    parser.add_argument("--height", type=int, default=1400, help="most pixels of each section")
    parser.add_argument("--dark", action="store_true")
    arguments = parser.parse_args()
    if find_browser() is None:
        print(
            "page_picture.py: there is no Chromium; name one in NNABLA_DQA_BROWSER", file=sys.stderr
        )
        return 2
    with tempfile.TemporaryDirectory() as folder, browser(folder) as page:
        page.open(arguments.page, arguments.width, dark=arguments.dark)
        parts = taken(page, arguments, Path(folder))
    whole = Image.new("RGB", (parts[0].width, sum(part.height for part in parts)))
    top = 0
    for part in parts:
        whole.paste(part, (0, top))
        top += part.height
    small = whole.quantize(256, Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE)
    small.save(arguments.picture, optimize=True)
    print(f"{arguments.picture}: {arguments.picture.stat().st_size:,} bytes")
    return 0


def taken(page: Any, arguments: argparse.Namespace, folder: Path) -> List[Image.Image]:
    """The pictures of the sections, or of the top."""
    page.screenshot(folder / "page.png")
    whole = Image.open(io.BytesIO((folder / "page.png").read_bytes())).convert("RGB")
    spans = [page.evaluate(_BOX.format(name)) for name in arguments.sections]
    spans = spans or [[0, whole.height]]
    return [
        whole.crop((0, top, whole.width, min(bottom, top + arguments.height)))
        for top, bottom in spans
    ]


if __name__ == "__main__":
    sys.exit(main())
