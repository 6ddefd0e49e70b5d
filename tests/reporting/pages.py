"""What stands on a page, and whether its HTML holds together."""

from __future__ import annotations

from html.parser import HTMLParser

_VOID = {"meta", "br", "path", "rect", "use", "link"}


class Page(HTMLParser):
    """The text, tables and links of a page; raises AssertionError where tags do not match."""

    def __init__(self, html):
        super().__init__(convert_charrefs=True)
        self.stack, self.text, self.ids, self.links = [], [], [], []
        self.tags, self.pictures, self.tables, self._cell = {}, [], {}, None
        self._caption = ""
        self.feed(html)
        self.close()
        assert self.stack == [], self.stack

    def handle_starttag(self, tag, attributes):
        values = dict(attributes)
        self.tags[tag] = self.tags.get(tag, 0) + 1
        if "id" in values:
            self.ids.append(values["id"])
        if tag == "a":
            self.links.append(values["href"])
        if tag == "svg" and values.get("aria-hidden") != "true":
            assert values["role"] == "img"
            self.pictures.append(values["aria-label"])
        assert not any(name.startswith("on") or name == "src" for name in values), values
        if tag == "caption":
            self._caption = ""
        if tag == "tr":
            self.tables.setdefault(self._caption, []).append([])
        if tag in ("td", "th"):
            self.tables[self._caption][-1].append("")
        if tag not in _VOID:
            self.stack.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.handle_starttag(tag, attributes)
        if tag not in _VOID:
            self.stack.pop()

    def handle_endtag(self, tag):
        if tag not in _VOID:
            assert self.stack.pop() == tag

    def handle_data(self, data):
        if "style" in self.stack:
            return
        self.text.append(data)
        if self.stack and self.stack[-1] == "caption":
            self._caption += data
        elif {"td", "th"} & set(self.stack):
            self.tables[self._caption][-1][-1] += data

    @property
    def words(self):
        """All its text, on one line."""
        return " ".join(" ".join(self.text).split())


def read(path):
    """The page in a file, of which everything is checked that holds of all pages."""
    html = path.read_text("utf-8")
    page = Page(html)
    assert len(page.ids) == len(set(page.ids))
    assert all(link[1:] in page.ids for link in page.links)
    assert "script" not in page.tags
    body = html.partition("<body>")[2]
    # Neither a colour of its own nor anything from elsewhere.
    assert "#0101" not in body
    assert "http" not in body.replace("http://www.w3.org/1999/xlink", "")
    return page
