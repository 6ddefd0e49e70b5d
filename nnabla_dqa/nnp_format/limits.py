"""How much an NNP may unpack to: a zip of a few kilobytes can hold terabytes of zeros."""

from __future__ import annotations

import struct
import zipfile
import zlib
from typing import Dict, NamedTuple, Optional

from nnabla_dqa._util.messages import one_line

MAX_BYTES = 4 << 30
"""What a file may unpack to at most: twice the 2 GiB that protobuf can hold."""
MAX_MESSAGE = 2 << 30
"""What a member may unpack to, but for HDF5: protobuf can hold no more."""
MAX_RATIO = 200
"""What it may unpack to as a multiple of its size; 1-bit weights of real networks stay below."""
FREE_BYTES = 256 << 20
"""Up to this the ratio does not count: so little harms nobody, and equal weights deflate 1000:1."""
DAMAGE = (
    *(zipfile.BadZipFile, zlib.error, struct.error, EOFError, OSError),
    *(OverflowError, RuntimeError, ValueError),
)
"""What zipfile, the decompressors and h5py raise on damaged data."""
_CHUNK = 1 << 20


class LimitError(ValueError):
    """Data would unpack to more than the limit allows."""


class Limit(NamedTuple):
    """The bytes that the members of one file, and the arrays in them, may take in memory."""

    total: int
    given: bool

    @classmethod
    def of(cls, file_bytes: int, max_bytes: Optional[int] = None) -> Limit:
        """The limit for a file of this size; ``max_bytes`` takes the place of all defaults."""
        if max_bytes is not None:
            return cls(max_bytes, True)
        return cls(min(MAX_BYTES, max(FREE_BYTES, MAX_RATIO * file_bytes)), False)

    def check(self, needed: int, what: str) -> None:
        """Raise LimitError if ``what`` needs more than is allowed."""
        if needed > self.total:
            rule = "max_bytes" if self.given else f"{MAX_RATIO} times the file's size"
            if not self.given and self.total in (FREE_BYTES, MAX_BYTES):
                small = self.total == FREE_BYTES
                rule = "the default for a file this small" if small else "the default"
            raise LimitError(
                f"{what} unpack to {needed:,} bytes, more than the {self.total:,} allowed "
                f"({rule}); if you trust the file, give a larger max_bytes"
            )


def unpack(archive: zipfile.ZipFile, limit: Limit) -> Dict[str, bytes]:
    """The members of a zip by name; folders are left out.

    Raises:
        LimitError: They unpack to more than ``limit``, by what the zip's
            directory says; nothing has been unpacked then.
        ValueError: A member is broken, or not what the directory says, which
            is noticed before more than that is unpacked; the message names it.
    """
    infos = [info for info in archive.infolist() if not info.is_dir()]
    limit.check(sum(info.file_size for info in infos), "its members")
    for info in infos:
        if info.file_size > MAX_MESSAGE and not info.filename.endswith(".h5"):
            raise LimitError(
                f"member {info.filename} unpacks to {info.file_size:,} bytes; protobuf holds no "
                f"more than {MAX_MESSAGE:,}"
            )
    members = {}
    for info in infos:
        try:
            members[info.filename] = _read(archive, info)
        except DAMAGE as error:
            message = f"member {info.filename} is broken: {one_line(error)}"
            raise ValueError(message) from None
    return members


def _read(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> bytes:
    # zipfile returns no more than the size in the directory, but it unpacks each piece of
    # bzip2 or LZMA whole before it cuts it: forty bytes of bzip2 can be forty megabytes.
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise ValueError("it is neither stored nor deflated, as the members of an NNP are")
    with archive.open(info) as stream:
        return b"".join(iter(lambda: stream.read(_CHUNK), b""))
