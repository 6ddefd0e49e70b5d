"""What scripts/site/ makes of the pages and the docstrings."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

import nnabla_dqa as dqa
from tests.examples.scripts import load

pytest.importorskip("mkdocs", reason="mkdocs is not installed: the extra docs has it")
pytest.importorskip("griffe", reason="griffe is not installed: the extra docs has it")
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[2]
LINK = "[`dqa.deploy`][nnabla_dqa.deploy]"


def hook(name):
    return load(ROOT / "scripts" / "site" / f"{name}.py")


@pytest.mark.parametrize(
    ("src_uri", "text", "expected"),
    [
        ("method.md", "[q](quantizers.md#a)", "[q](quantizers.md#a)"),
        ("method.md", "[c](../CONTRIBUTING.md#x)", "[c](repository/CONTRIBUTING.md#x)"),
        ("method.md", '![p](../results/a.png "t")', '![p](repository/results/a.png "t")'),
        ("method.md", "[s](../a/b.py)", "[s](repository/a/b.py.md)"),
        ("method.md", "[o](https://o.org/x.md) [h](#h)", "[o](https://o.org/x.md) [h](#h)"),
        ("method.md", "`[c](../C.md)` [`d`](../D.md)", "`[c](../C.md)` [`d`](repository/D.md)"),
        ("method.md", "```\n[c](../C.md)\n```\n", "```\n[c](../C.md)\n```\n"),
        ("repository/README.md", "[m](docs/method.md)", "[m](../method.md)"),
        ("repository/a/b/README.md", "[m](../../docs/m.md)", "[m](../../../m.md)"),
        ("repository/a/b/README.md", "[c](../c/d.yaml)", "[c](../c/d.yaml.md)"),
    ],
)
def test_links_lead_to_the_pages_of_the_site(src_uri, text, expected):
    assert hook("outside").rewritten(text, src_uri) == expected


@pytest.fixture
def site(tmp_path):
    """MkDocs' configuration and the files of a small repository."""
    (tmp_path / "docs").mkdir()
    settings = {"use_directory_urls": False, "site_dir": str(tmp_path / "site")}

    def made(nav=None, **pages):
        for name, text in pages.items():
            (tmp_path / "docs" / f"{name}.md").write_text(text)
        config = SimpleNamespace(
            config_file_path=str(tmp_path / "mkdocs.yml"), nav=nav, plugins=SimpleNamespace()
        )
        config.plugins._current_plugin = "hooks"
        for name, value in settings.items():
            setattr(config, name, value)
        files = [
            File(f"{name}.md", str(tmp_path / "docs"), config.site_dir, False) for name in pages
        ]
        return Files(files), config

    return made


def test_what_pages_link_to_becomes_part_of_the_site(site, tmp_path):
    (tmp_path / "A.md").write_text("[b](b.py) [page](docs/page.md) [self](A.md)")
    (tmp_path / "b.py").write_text("print()\n")
    cells = [("markdown", ["# N\n", "\n", "[d](docs/page.md)"]), ("code", ["1\n", "2"])]
    notebook = {"cells": [{"cell_type": kind, "source": source} for kind, source in cells]}
    (tmp_path / "n.ipynb").write_text(json.dumps(notebook))
    (tmp_path / "p.png").write_bytes(b"")
    (tmp_path / "C.md").write_text("in the nav alone")
    files, config = site(
        [{"C": "repository/C.md"}], page="[a](../A.md#x) ![p](../p.png) [n](../n.ipynb)"
    )
    found = {f.src_uri: f for f in hook("outside").on_files(files, config)}
    assert set(found) == {"page.md"} | {
        f"repository/{name}" for name in ("A.md", "C.md", "b.py.md", "n.ipynb.md", "p.png")
    }
    assert found["repository/b.py.md"].content_string == "# b.py\n\n````python\nprint()\n````\n"
    assert found["repository/n.ipynb.md"].content_string == (
        "# N\n\n*The notebook `n.ipynb`, to read. In a clone it runs.*\n\n[d](docs/page.md)\n\n"
        "````python\n1\n2\n````\n"
    )
    assert found["repository/C.md"].inclusion.is_in_nav()
    assert found["repository/A.md"].inclusion.is_not_in_nav()


@pytest.mark.parametrize(
    ("link", "message"),
    [
        ("../missing.md", r"docs/page\.md: there is no file missing\.md to link to"),
        ("../docs", r"docs/page\.md: there is no file docs to link to"),
        ("../a.bin", r"a\.bin: a page links to it, but the site can show \.md, \.png"),
    ],
)
def test_what_cannot_be_shown_is_named(site, tmp_path, link, message):
    (tmp_path / "a.bin").write_bytes(b"")
    with pytest.raises(PluginError, match=message):
        hook("outside").on_files(*site(page=f"[x]({link})"))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("use `dqa.deploy`", f"use {LINK}"),
        ("`dqa.deploy(path, x)`", "[`dqa.deploy(path, x)`][nnabla_dqa.deploy]"),
        ("| `dqa.deploy` |", f"| {LINK} |"),
        ("`dqa.other`, `x.deploy`", "`dqa.other`, `x.deploy`"),
        ("[`dqa.deploy`](a.md)", "[`dqa.deploy`](a.md)"),
        ("# `dqa.deploy`", "# `dqa.deploy`"),
        ("    print(`dqa.deploy`)", "    print(`dqa.deploy`)"),
        ("```python\n`dqa.deploy`\n```\n", "```python\n`dqa.deploy`\n```\n"),
        ("````\n`dqa.deploy`\n````\n`dqa.deploy`", "````\n`dqa.deploy`\n````\n" + LINK),
    ],
)
def test_public_names_become_links(text, expected):
    assert hook("api").with_links(text, {"deploy"}) == expected


def test_every_public_name_has_one_entry(monkeypatch):
    api = hook("api")
    assert sorted(api.public_names(ROOT)) == sorted(dqa.__all__)
    pages = "".join(api.page_of(stem) for stem in api.PAGES)
    for name in dqa.__all__:
        assert pages.splitlines().count(f"::: nnabla_dqa.{name}") == 1, name
    title, about, names = api.PAGES["backends"]
    monkeypatch.setitem(api.PAGES, "backends", (title, about, names.replace("backend ", "", 1)))
    config = SimpleNamespace(config_file_path=str(ROOT / "mkdocs.yml"))
    with pytest.raises(PluginError, match=r"PAGES and nnabla_dqa\.__all__ differ by \['backend'\]"):
        api.on_files(Files([]), config)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (":func:`nnabla_dqa.deploy`", "[`deploy`][nnabla_dqa.deploy]"),
        (":func:`~nnabla_dqa.deploy`", "[`deploy`][nnabla_dqa.deploy]"),
        (":func:`deploy`", "[`deploy`][nnabla_dqa.deploy]"),
        (":meth:`nnabla_dqa.nnp_format.archive.Archive.read`", "`read`"),
        (":func:`nnabla.parametric_functions.affine`", "`nnabla.parametric_functions.affine`"),
        (":meth:`state`", "`state`"),
        ("steps::\n\n    x", "steps:\n\n    x"),
    ],
)
def test_docstrings_are_shown_without_roles(text, expected):
    assert hook("docstrings").linked(text, {"deploy"}) == expected
