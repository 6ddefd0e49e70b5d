"""Elements of an HTML page, whose text is escaped unless it is markup already."""

from __future__ import annotations

import html
import re
from typing import Iterable, Optional, Sequence, Tuple, Union

Attribute = Union[str, int, bool, None]
_NUMBER = re.compile(r"[-+]?[\d.,]+(e[-+]\d+)?( %)?|nan|-?inf|-")
_UNSEEN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\ue000-\uf8ff\ufffe\uffff]")


class Markup(str):
    """Text that is HTML already."""


def plain(value: object) -> str:
    """Text that came from anywhere, without characters that HTML cannot hold."""
    return _UNSEEN.sub("\ufffd", str(value))


def escape(value: object) -> Markup:
    """``value`` as text of a page; markup as it is."""
    return value if isinstance(value, Markup) else Markup(html.escape(plain(value)))


def join(parts: Iterable[object]) -> Markup:
    """Parts after each other, what is no markup escaped."""
    return Markup("".join(escape(part) for part in parts))


def element(name: str, *children: object, **attributes: Attribute) -> Markup:
    """``<name attribute="...">children</name>``.

    Args:
        name: The element's.
        children: Markup, or anything else as text.
        attributes: ``class_`` stands for ``class``, ``aria_label`` for ``aria-label``; True for an
            attribute without a value, None and False for none.
    """
    opened = [name]
    for key, value in attributes.items():
        word = key.rstrip("_").replace("_", "-")
        if value is True:
            opened.append(word)
        elif value is not None and value is not False:
            opened.append(f'{word}="{escape(str(value))}"')
    return Markup(f"<{' '.join(opened)}>{join(children)}</{name}>")


def table(caption: str, head: Sequence[str], rows: Iterable[Sequence[object]]) -> Markup:
    """A table in a box that scrolls by itself, by keyboard too; the first column names the row."""
    lines = [
        element(
            "tr",
            element("th", row[0], scope="row"),
            *(element("td", cell, class_=_kind(cell)) for cell in row[1:]),
        )
        for row in rows
    ]
    made = element(
        "table",
        element("caption", caption),
        element("thead", element("tr", *(element("th", cell, scope="col") for cell in head))),
        element("tbody", *lines),
    )
    return element("div", made, class_="scroll", role="region", tabindex=0, aria_label=caption)


def pairs(caption: str, rows: Iterable[Tuple[object, object]]) -> Markup:
    """Names and values as a table of two columns without a head."""
    lines = [
        element("tr", element("th", name, scope="row"), element("td", value, class_="text"))
        for name, value in rows
    ]
    made = element("table", element("caption", caption), element("tbody", *lines))
    return element("div", made, class_="scroll", role="region", tabindex=0, aria_label=caption)


def _kind(cell: object) -> Optional[str]:
    return "number" if _NUMBER.fullmatch(str(cell)) else None


def figure(title: str, svg: Markup, numbers: Markup, note: str = "", legend: object = "") -> Markup:
    """A picture with its title, and what it shows as a table folded below it."""
    return element(
        "figure",
        element("figcaption", title),
        legend,
        svg,
        *([element("p", note, class_="note")] if note else []),
        folded("Its numbers", numbers),
    )


def folded(summary: object, *children: object, open_: bool = False) -> Markup:
    """What is shown when ``summary`` is chosen."""
    return element("details", element("summary", summary), *children, open=open_)


def section(anchor: str, title: str, *children: object) -> Markup:
    """A part of the page that a link leads to."""
    head = element("h2", title, id=f"{anchor}-title")
    return element("section", head, *children, id=anchor, aria_labelledby=f"{anchor}-title")


def facts(pairs: Iterable[Sequence[object]]) -> Markup:
    """Names and values."""
    rows = [element("div", element("dt", name), element("dd", value)) for name, value in pairs]
    return element("dl", *rows)


def paragraphs(texts: Iterable[object]) -> Markup:
    """Each text a paragraph."""
    return join(element("p", text) for text in texts)


def grid(pictures: Iterable[Markup], small: bool = False) -> Markup:
    """Pictures beside each other where there is room."""
    return element("div", *pictures, class_="grid small" if small else "grid")
