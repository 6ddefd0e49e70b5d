"""The frame of the page: its head, its style in light and dark, and what embeds pictures."""

from __future__ import annotations

import re
from typing import Iterable, Tuple

from nnabla_dqa.reporting.page.html import Markup, element, escape, join

PICTURE = "\ue000"
"""Stands in ids of a picture for its number on the page; no text of a file can hold it."""

_STYLE = """
:root { color-scheme: light dark;
  --ground: #ffffff; --ink: #1b1b1f; --muted: #5c5c66; --grid: #dcdce2; --shade: #ececf2;
  --box: #f6f6f9; --link: #0b57a4; --bad: #b3261e;
  --series-1: #0072b2; --series-2: #c14e00; --series-3: #00795a; --series-4: #a0418a;
  --series-5: #7a6a00; }
@media (prefers-color-scheme: dark) { :root {
  --ground: #16171b; --ink: #e8e8ec; --muted: #a6a6b2; --grid: #3a3b43; --shade: #26272e;
  --box: #1e1f25; --link: #8cc0ff; --bad: #ff8a80;
  --series-1: #56b4e9; --series-2: #f39a4d; --series-3: #3fd0a2; --series-4: #e48cc8;
  --series-5: #d9cf55; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1rem; max-width: 84rem; background: var(--ground);
  color: var(--ink); font: 16px/1.5 system-ui, sans-serif; overflow-wrap: anywhere; }
h1 { font-size: 1.6rem; line-height: 1.25; margin: .5rem 0; }
h2 { font-size: 1.25rem; margin: 2.2rem 0 .6rem; padding-top: .6rem;
  border-top: 1px solid var(--grid); }
h3 { font-size: 1.05rem; margin: 1.4rem 0 .4rem; }
p { max-width: 48rem; margin: .5rem 0; }
a { color: var(--link); }
:focus-visible { outline: 2px solid var(--link); outline-offset: 2px; }
.lead, .note, figcaption, caption { color: var(--muted); }
.bad { color: var(--bad); font-weight: 600; }
nav ul { display: flex; flex-wrap: wrap; gap: .2rem 1.2rem; list-style: none; padding: 0;
  margin: .8rem 0; }
dl { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 9.5rem), 1fr));
  gap: .6rem; margin: 1rem 0; }
dl > div { background: var(--box); border-radius: .4rem; padding: .5rem .8rem; }
dt { color: var(--muted); font-size: .85rem; }
dd { margin: 0; }
.grid { display: grid; gap: 1rem; align-items: start;
  grid-template-columns: repeat(auto-fit, minmax(min(100%, 26rem), 1fr)); }
.grid.small { grid-template-columns: repeat(auto-fill, minmax(min(100%, 19rem), 1fr)); }
figure { max-width: 44rem; min-width: 0; margin: 0; padding: .8rem; background: var(--box);
  border-radius: .4rem; }
figcaption { color: var(--ink); font-weight: 600; margin-bottom: .3rem; }
figure .note { font-size: .85rem; }
svg { display: block; width: 100%; height: auto; max-width: 40rem; }
.legend { display: flex; flex-wrap: wrap; gap: 0 1rem; margin: 0; padding: 0; list-style: none;
  font-size: .85rem; }
.legend li { display: flex; align-items: center; gap: .4rem; }
.legend svg { width: 1.9rem; flex: none; }
svg * { stroke-linejoin: round; stroke-linecap: butt; }
details { margin: .5rem 0; }
summary { cursor: pointer; color: var(--link); }
.scroll { overflow-x: auto; max-width: 100%; max-height: 40rem; margin: .5rem 0; }
table { border-collapse: collapse; font-size: .85rem; overflow-wrap: normal; }
caption { text-align: left; padding-bottom: .3rem; }
th, td { text-align: left; padding: .2rem .7rem .2rem 0; border-bottom: 1px solid var(--grid);
  vertical-align: top; white-space: nowrap; }
td.text { white-space: normal; min-width: 12rem; max-width: 60rem; }
td.number { text-align: right; font-variant-numeric: tabular-nums; }
thead th { color: var(--muted); font-weight: 600; }
tbody th { font-weight: 400; }
@media print { details > * { display: block; } }
"""


def page(title: str, lead: str, links: Iterable[Tuple[str, str]], body: Iterable[Markup]) -> str:
    """The whole document.

    Args:
        title: Of the document, and its first heading.
        lead: The line below it.
        links: Anchors of its sections and what they are called.
        body: The sections.
    """
    listed = [element("li", element("a", name, href=f"#{anchor}")) for anchor, name in links]
    main = join(
        [
            element("h1", title),
            element("p", lead, class_="lead"),
            element("nav", element("ul", *listed), aria_label="Sections"),
            element("main", *body),
        ]
    )
    # Nothing is loaded and nothing runs, whatever a file's names try to say.
    policy = "default-src 'none'; style-src 'unsafe-inline'"
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{_STYLE}</style>\n</head>\n"
        f"<body>\n{_numbered(main)}\n</body>\n</html>\n"
    )


def _numbered(body: str) -> str:
    """Ids of each picture with its number, so that no two of them are equal."""
    first, *pictures = body.split("<svg ")
    numbered = [part.replace(PICTURE, f"p{i}-") for i, part in enumerate(pictures)]
    # Spaces between elements of a picture are most of what it would weigh.
    return "<svg ".join([first, *(re.sub(r">\n\s*<", ">\n<", part) for part in numbered)])
