"""What `make lint` asks of the pages is noticed where it does not hold."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.examples.scripts import load

SCRIPTS = Path(__file__).resolve().parent.parent / "scripts"


def test_a_table_that_is_not_the_results_is_found_and_mended(tmp_path, monkeypatch, capsys):
    script = load(SCRIPTS / "readme.py")
    monkeypatch.setattr(script, "ROOT", tmp_path)
    monkeypatch.setattr(
        script, "all_tables", lambda: [("a.md", "t", "| 2 |"), ("a.md", "u", "| 3 |")]
    )
    page = tmp_path / "a.md"
    page.write_text(
        "x\n<!-- t:begin -->\n| 1 |\n<!-- t:end -->\n<!-- u:begin -->\n| 3 |\n<!-- u:end -->\ny\n"
    )
    before = page.read_text()
    assert script.main(["--check"]) == 1
    assert capsys.readouterr().out == "a.md: table 't' is not that of results/; run make readme\n"
    assert page.read_text() == before
    assert script.main([]) == 0
    assert page.read_text() == before.replace("1", "2")
    assert script.main(["--check"]) == 0
    page.write_text("nothing\n")
    with pytest.raises(SystemExit, match=r"a\.md: the markers of 't' occur 0 times, not once"):
        script.main(["--check"])


def test_links_and_paths_that_lead_nowhere_are_named(tmp_path):
    script = load(SCRIPTS / "check_links.py")
    (tmp_path / "docs").mkdir()
    (tmp_path / "results").mkdir()
    (tmp_path / "a.md").write_text("[b](docs/b.md#c) [d](https://d.org/e) [f](g.md) `tests/h.py`")
    (tmp_path / "docs/b.md").write_text(
        "[a](../a.md) `results/` `results/i.json` `results/<j>.json`"
    )
    assert list(script.missing(tmp_path)) == [
        "a.md: there is no g.md",
        "a.md: there is no tests/h.py",
        "docs/b.md: there is no results/i.json",
    ]
