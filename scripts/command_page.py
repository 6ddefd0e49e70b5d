"""The commands and their options as Markdown, from the parsers that read them."""

from __future__ import annotations

import argparse
import re
from typing import Dict, List

from nnabla_dqa.cli import parser_of_commands


def commands() -> str:
    """A section for each command: what it does, its arguments, examples."""
    return "\n\n".join(
        _section(name, parser) for name, parser in _subparsers(parser_of_commands()).items()
    )


def _subparsers(parser: argparse.ArgumentParser) -> Dict[str, argparse.ArgumentParser]:
    # argparse offers no public way to look into a parser.
    (found,) = (a for a in parser._actions if isinstance(a, argparse._SubParsersAction))
    return dict(found.choices)


def _section(name: str, parser: argparse.ArgumentParser) -> str:
    description = (parser.description or "").strip()
    lines = [f"## {name}", "", f"{description[:1].upper()}{description[1:]}.", ""]
    lines += ["| argument | what it is |", "|---|---|"]
    shown = [a for a in parser._actions if a.dest != "help" and a.help != argparse.SUPPRESS]
    lines += [_line(action, parser) for action in shown]
    if parser.epilog:
        lines += ["", "```text", parser.epilog.strip(), "```"]
    return "\n".join(lines)


def _line(action: argparse.Action, parser: argparse.ArgumentParser) -> str:
    shown = action.metavar or (action.dest.upper() if action.option_strings else action.dest)
    if action.choices and not action.metavar:
        shown = "{" + ",".join(map(str, action.choices)) + "}"
    names: List[str] = list(action.option_strings) or [str(shown)]
    if action.option_strings and action.nargs != 0:
        names[-1] += f" {shown}"
    # What argparse would print.
    text = (action.help or "") % {**vars(action), "prog": parser.prog}
    text = re.sub(r"([<*_])", r"\\\1", text)
    cells = [", ".join(f"`{name}`" for name in names), text]
    # A bar would end the cell.
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
