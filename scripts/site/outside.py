"""MkDocs hook: what the pages of docs/ link to outside docs/ becomes part of the site.

The pages link relatively, as a code host shows them. A Markdown file outside docs/ becomes a page,
another text file a page that shows it, a picture stays a picture, each under ``repository/`` and
its path, a notebook its cells; so do the files that those link to in turn. Links are rewritten
accordingly.
"""

from __future__ import annotations

import json
import posixpath
import re
from pathlib import Path
from typing import Any, Iterator, List, Tuple

from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files, InclusionLevel

FOLDER = "repository"
PICTURES = (".png", ".svg", ".jpg")
LANGUAGES = {".py": "python", ".yaml": "yaml", ".json": "json", ".ipynb": "python"}

_LINK = re.compile(r"\]\(([^)\s]+)((?:\s+\"[^\"]*\")?\))")
_CODE = re.compile(r"^(`{3,}|~{3,}).*?^\1[ \t]*$|`[^`\n]+`", re.M | re.S)


def on_files(files: Files, config: Any) -> Files:
    """Add the files outside docs/ that pages link to, directly or by way of each other."""
    root = Path(config.config_file_path).parent
    in_nav = [_repository_path(path) for path in _paths(config.nav) if path.startswith(FOLDER)]
    waiting: List[Tuple[str, List[str]]] = [("mkdocs.yml", in_nav)]
    for file in files.documentation_pages():
        if file.generated_by is None:
            path = _repository_path(file.src_uri)
            waiting.append((path, linked(path, file.content_string)))
    while waiting:
        path, targets = waiting.pop()
        for target in targets:
            if target.startswith("docs/") or _site_path(target) in files.src_uris:
                continue
            if not (root / target).is_file():
                raise PluginError(f"{path}: there is no file {target} to link to")
            files.append(_added(config, root, target, target in in_nav))
            if target.endswith((".md", ".ipynb")):
                text = (root / target).read_text("utf-8")
                text = _cells(text) if target.endswith(".ipynb") else text
                waiting.append((target, linked(target, text)))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Let links between docs/ and the rest of the repository lead to the site's pages."""
    return rewritten(markdown, page.file.src_uri)


def rewritten(markdown: str, src_uri: str) -> str:
    """The text of the site's source ``src_uri`` with its links as those of the site."""
    path = _repository_path(src_uri)

    def link(found: re.Match[str]) -> str:
        target, anchor = _resolved(path, found[1])
        if not target or (path.startswith("docs/") and target.startswith("docs/")):
            return found[0]
        new = posixpath.relpath(_site_path(target), posixpath.dirname(src_uri) or ".")
        return f"]({new}{anchor}{found[2]}"

    return "".join(part if code else _LINK.sub(link, part) for part, code in _parts(markdown))


def linked(path: str, markdown: str) -> List[str]:
    """The files of the repository that its file ``path`` links to."""
    text = "".join(part for part, code in _parts(markdown) if not code)
    targets = (_resolved(path, found[1])[0] for found in _LINK.finditer(text))
    return [target for target in targets if target]


def _parts(markdown: str) -> Iterator[Tuple[str, bool]]:
    """The text in pieces, and whether each is code."""
    at = 0
    for found in _CODE.finditer(markdown):
        yield markdown[at : found.start()], False
        yield found[0], True
        at = found.end()
    yield markdown[at:], False


def _resolved(path: str, link: str) -> Tuple[str, str]:
    """File and anchor that the repository's file ``path`` links to; no file for other links."""
    target, mark, anchor = link.partition("#")
    if not target or re.match(r"[a-z]+:|/", target):
        return "", ""
    return posixpath.normpath(posixpath.join(posixpath.dirname(path), target)), mark + anchor


def _repository_path(src_uri: str) -> str:
    """Where a source of the site stands in the repository."""
    if not src_uri.startswith(f"{FOLDER}/"):
        return f"docs/{src_uri}"
    path = src_uri[len(FOLDER) + 1 :]
    shown, _ = posixpath.splitext(path)
    return shown if shown.endswith(tuple(LANGUAGES)) else path


def _site_path(path: str) -> str:
    """Where a file of the repository stands among the site's sources."""
    if path.startswith("docs/"):
        return path[len("docs/") :]
    return f"{FOLDER}/{path}" if path.endswith((".md", *PICTURES)) else f"{FOLDER}/{path}.md"


def _added(config: Any, root: Path, path: str, in_nav: bool) -> File:
    inclusion = InclusionLevel.INCLUDED if in_nav else InclusionLevel.NOT_IN_NAV
    where, suffix = _site_path(path), posixpath.splitext(path)[1]
    if path.endswith((".md", *PICTURES)):
        source = str(root / path)
        return File.generated(config, where, abs_src_path=source, inclusion=inclusion)
    if suffix not in LANGUAGES:
        known = ", ".join([".md", *PICTURES, *LANGUAGES])
        raise PluginError(f"{path}: a page links to it, but the site can show {known} only")
    text = (root / path).read_text("utf-8")
    if suffix == ".ipynb":
        head, _, rest = _cells(text).partition("\n\n")
        content = f"{head}\n\n*The notebook `{path}`, to read. In a clone it runs.*\n\n{rest}"
    else:
        content = f"# {path}\n\n````{LANGUAGES[suffix]}\n{text}````\n"
    return File.generated(config, where, content=content, inclusion=inclusion)


def _cells(notebook: str) -> str:
    """The Markdown of a notebook: its text and its code, without outputs."""
    cells = []
    for cell in json.loads(notebook)["cells"]:
        text = "".join(cell["source"])
        cells.append(text if cell["cell_type"] == "markdown" else f"````python\n{text}\n````")
    # Markdown within an element is read as such where the element says so.
    return "\n\n".join(cells).replace("<details>", '<details markdown="1">') + "\n"


def _paths(nav: Any) -> Iterator[str]:
    """The paths in MkDocs' nav."""
    if isinstance(nav, str):
        yield nav
    elif nav:
        for entry in nav.values() if isinstance(nav, dict) else nav:
            yield from _paths(entry)
