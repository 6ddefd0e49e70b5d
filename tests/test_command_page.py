"""docs/commands.md, which scripts/command_page.py makes of the parsers."""

from __future__ import annotations

import re

import pytest

from nnabla_dqa.cli import main
from scripts.command_page import commands


@pytest.fixture
def page():
    return commands()


def helped(capsys, *words):
    with pytest.raises(SystemExit):
        main([*words, "--help"])
    return capsys.readouterr().out


def test_has_a_section_for_each_command_with_all_its_options(page, capsys):
    sections = dict(re.findall(r"^## (\S+)\n(.*?)(?=^## |\Z)", page, re.M | re.S))
    assert {"convert", "train", "deploy", "check", "evaluate", "export"} < set(sections)
    for name, section in sections.items():
        printed = set(re.findall(r"^  +(?:-\w[^-]*)?(--[a-z0-9-]+)", helped(capsys, name), re.M))
        assert printed - {"--help"}
        first = "".join(re.findall(r"^\| (`.*?) \| ", section, re.M))
        assert printed - {"--help"} == set(re.findall(r"--[a-z0-9-]+", first))


def test_no_word_is_lost_in_markdown(page):
    rows = [line for line in page.splitlines() if line.startswith("| `")]
    assert all(len(re.findall(r"(?<!\\)\|", row)) == 3 for row in rows)
    outside = [re.sub(r"`[^`]*`", "", row) for row in rows]
    assert not [row for row in outside if re.search(r"(?<!\\)[<*_]", row)]
    assert "%(" not in page
