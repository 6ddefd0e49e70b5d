"""Fails where a page links to, or names, a file that is not there: part of `make lint`."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Iterator

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = ("benchmarks", "examples", "nnabla_dqa", "results", "scripts", "tests")


def missing(root: Path) -> Iterator[str]:
    """A line for each."""
    for page in sorted(
        [*root.glob("*.md"), *root.glob("docs/*.md"), *root.glob("examples/**/*.md")]
    ):
        text = page.read_text("utf-8")
        linked = [(page.parent, found) for found in re.findall(r"\]\(([^)#\s]+)", text)]
        # A name with a placeholder is no path.
        named = re.findall(rf"`((?:{'|'.join(FOLDERS)})/[\w./-]*)`", text)
        for folder, target in [*linked, *((root, name) for name in named)]:
            if "://" not in target and not (folder / target).exists():
                yield f"{page.relative_to(root)}: there is no {target}"


if __name__ == "__main__":
    lines = list(missing(ROOT))
    print("\n".join(lines), end="\n" if lines else "")
    sys.exit(int(bool(lines)))
