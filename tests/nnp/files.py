"""The members of an NNP, changed by hand, and what reading it must refuse."""

from __future__ import annotations

import zipfile

import pytest

from nnabla_dqa.nnp_format.archive import Archive
from nnabla_dqa.nnp_format.members import NNPError, write_members


def members(path):
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def rewritten(path, **changes):
    """The file with members replaced (by their suffix) or, for None, left out."""
    contents = members(path)
    for suffix, data in changes.items():
        name = next((n for n in contents if n.endswith(suffix)), suffix)
        contents[name] = data
        if data is None:
            del contents[name]
    write_members(path, contents)
    return path


def refused(path, *words, read=Archive.read):
    with pytest.raises(NNPError) as caught:
        read(path)
    message = str(caught.value)
    assert "\n" not in message
    assert str(path) in message
    for word in words:
        assert word in message
    return message
