"""Event files read back, as TensorBoard reads them."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Dict, Iterator, Tuple

import pytest

pytest.importorskip("tensorboardX", reason="tensorboardX is not installed (the extra [monitor])")

from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.record_writer import masked_crc32c

Curves = Dict[str, Dict[int, float]]


def records(path: Path) -> Iterator[bytes]:
    """The records of a file; a check sum that is wrong fails."""
    data, at = path.read_bytes(), 0
    while at < len(data):
        (length,) = struct.unpack_from("<Q", data, at)
        body = data[at + 12 : at + 12 + length]
        sums = struct.unpack_from("<I", data, at + 8) + struct.unpack_from(
            "<I", data, at + 12 + length
        )
        assert sums == (masked_crc32c(data[at : at + 8]), masked_crc32c(body))
        yield body
        at += 16 + length


def events(folder: Path) -> Iterator[Event]:
    """All events of a folder, in the order in which TensorBoard takes them."""
    for path in sorted(folder.glob("*tfevents*")):
        found = [Event.FromString(record) for record in records(path)]
        assert found[0].file_version == "brain.Event:2"
        assert found[1].session_log.status == SessionLog.START
        yield from found


def curves(folder: Path) -> Curves:
    """Values by tag and step; what a later start supersedes is gone, nothing may be there twice."""
    found: Curves = {}
    for event in events(folder):
        if event.session_log.status == SessionLog.START:
            for tag, series in found.items():
                found[tag] = {step: v for step, v in series.items() if step < event.step}
        for tag, value in scalars(event):
            series = found.setdefault(tag, {})
            assert event.step not in series, (tag, event.step)
            assert event.step > max(series, default=-1)
            series[event.step] = value
    return {tag: series for tag, series in found.items() if series}


def scalars(event: Event) -> Iterator[Tuple[str, float]]:
    """Tags and values of an event."""
    for value in event.summary.value:
        if value.HasField("simple_value"):
            yield value.tag, value.simple_value
