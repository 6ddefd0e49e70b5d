"""Tables as text."""

from __future__ import annotations

from typing import List, Tuple


def format_table(rows: List[Tuple[str, ...]]) -> str:
    """Rows of strings as aligned columns, a rule under the first."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(w) for cell, w in zip(row, widths)).rstrip() for row in rows]
    return "\n".join([lines[0], "  ".join("-" * w for w in widths), *lines[1:]])
