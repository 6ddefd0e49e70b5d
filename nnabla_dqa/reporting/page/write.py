"""A report of runs and NNP files, written as one HTML file."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Iterable, List, Optional, Sequence, Tuple

from nnabla_dqa._util.files import PathLike, check_target, write_atomically
from nnabla_dqa._version import __version__
from nnabla_dqa.recipes.yaml_files import is_nnp
from nnabla_dqa.reporting.page.comparison import comparison
from nnabla_dqa.reporting.page.html import folded, section
from nnabla_dqa.reporting.page.network_sections import file_sections
from nnabla_dqa.reporting.page.network_view import NetworkView, view_of_file, view_of_run
from nnabla_dqa.reporting.page.run_record import RunRecord, find_runs
from nnabla_dqa.reporting.page.run_sections import Section, run_sections
from nnabla_dqa.reporting.page.style import page
from nnabla_dqa.reporting.page.svg import ReportError, check_matplotlib


def write_report(
    sources: Iterable[PathLike], target: PathLike, max_bytes: Optional[int] = None
) -> Path:
    """Write a page about runs and NNP files: one HTML file that needs no network.

    Args:
        sources: Folders of runs (finished or not), folders with runs below them, and NNPs of any
            kind.
        target: The HTML file, replaced atomically.
        max_bytes: What an NNP may unpack to; the default is that of
            :meth:`nnabla_dqa.nnp_format.archive.Archive.read`.

    Returns:
        ``target``.

    Raises:
        ReportError: Nothing to report, a target that is a source or no ``.html``, or no matplotlib.
        RunError, CheckpointError, NNPError: A source is damaged, or something else.
        OSError: A file cannot be read or written.
    """
    paths = [Path(source) for source in sources]
    path = check_report_target(target, paths)
    check_matplotlib()
    files = [source for source in paths if is_file(source)]
    records = [RunRecord.read(f) for f in find_runs([p for p in paths if p not in files])]
    views = [(file.name, view_of_file(file, max_bytes)) for file in files]
    write_atomically(path, _page(records, views, max_bytes).encode("utf-8"))
    return path


def check_report_target(target: PathLike, sources: Sequence[Path]) -> Path:
    """``target`` if the page of ``sources`` can be written there.

    Raises:
        ReportError: It is no ``.html``, is a source, or there is no source.
        OSError: It is a folder, or its folder does not exist or cannot be written to.
    """
    path = Path(target)
    if not sources:
        raise ReportError("report: name the folder of a run, or an NNP")
    if path.suffix.lower() not in (".html", ".htm"):
        raise ReportError(f"{path}: the name of a report must end in .html")
    for source in sources:
        if source.exists() and path.exists() and os.path.samefile(source, path):
            raise ReportError(f"{path}: is an input, which is never overwritten; name another")
    return check_target(path)


def is_file(source: Path) -> bool:
    """Whether a source is an NNP, not the folder of a run.

    Raises:
        ReportError: It is neither.
        OSError: It is not there.
    """
    if source.is_dir():
        return False
    if not source.exists():
        raise FileNotFoundError(f"{source}: there is no such run or file")
    if not is_nnp(source):
        raise ReportError(f"{source}: is neither the folder of a run nor an .nnp file")
    return True


def _page(
    records: List[RunRecord], views: List[Tuple[str, NetworkView]], max_bytes: Optional[int]
) -> str:
    """The document: of one run or file all, of several runs first what compares them."""
    if len(records) + len(views) == 1:
        sections = [
            *(part for r in records for part in run_sections(r, view_of_run(r, max_bytes))),
            *(part for _, view in views for part in file_sections(view)),
        ]
        title = records[0].name if records else views[0][0]
    else:
        sections = _several(records, views, max_bytes)
        title = ", ".join(
            [*([f"{len(records)} runs"] if records else []), *(name for name, _ in views)]
        )
    links = [(anchor, name) for anchor, name, _ in sections]
    lead = f"A report by nnabla_dqa {__version__}."
    return page(title, lead, links, [content for *_, content in sections])


def _several(
    records: List[RunRecord], views: List[Tuple[str, NetworkView]], max_bytes: Optional[int]
) -> List[Section]:
    sections: List[Section] = []
    if len(records) > 1:
        content = section("runs", "Runs compared", *comparison(records))
        sections.append(("runs", "Runs compared", content))
    for i, record in enumerate(records, 1):
        view = view_of_run(record, max_bytes)
        parts = run_sections(record, view, f"run-{i}-", len(records) > 1)
        sections.append(_folded(f"run-{i}", record.name, parts))
    for i, (name, view) in enumerate(views, 1):
        sections.append(_folded(f"file-{i}", name, file_sections(view, f"file-{i}-")))
    return sections


def _folded(anchor: str, name: str, parts: Sequence[Section]) -> Section:
    """All about one of several sources, folded."""
    content = [part for *_, part in parts]
    return anchor, name, section(anchor, name, folded("Show all of it", *content))
