"""MkDocs hook: the style of the pages, and the script of their search.

The script stands in the place of one that the plugin `offline` lets the pages load from elsewhere
(``extra.polyfills`` of mkdocs.yml).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ASSETS = ("site.css", "iframe-worker.js")


def on_files(files: Files, config: Any) -> Files:
    """Add both files."""
    here = Path(config.config_file_path).parent / "scripts" / "site"
    for name in ASSETS:
        made = File.generated(config, f"assets/{name}", abs_src_path=str(here / name))
        files.append(made)
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """The first page has no list of pages beside it."""
    if page.is_homepage:
        page.meta["hide"] = ["navigation"]
    return markdown
