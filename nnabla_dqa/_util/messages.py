"""Errors of others, as part of a message of one line."""

from __future__ import annotations


def one_line(error: BaseException) -> str:
    """What ``error`` says, on one line; its kind if it says nothing."""
    return " ".join(str(error).split()) or type(error).__name__
