"""Whether a launcher has read what a process wrote."""

from __future__ import annotations

import array
import contextlib
import os
import stat
import sys
import time

if sys.platform != "win32":
    import fcntl
    import termios


def wait_until_read(seconds: float) -> None:
    """Wait until what this process wrote to stdout and stderr is read, where they are pipes.

    On Windows nothing says whether it is: returns at once.

    Args:
        seconds: How long at most.
    """
    until = time.monotonic() + seconds
    for descriptor in (1, 2):
        with contextlib.suppress(OSError):
            while (
                stat.S_ISFIFO(os.fstat(descriptor).st_mode)
                and unread(descriptor)
                and time.monotonic() < until
            ):
                time.sleep(0.01)


def unread(descriptor: int) -> int:
    """Bytes in a pipe that nobody has read yet; the end that writes may ask, too."""
    if sys.platform == "win32":
        return 0
    count = array.array("i", [0])
    fcntl.ioctl(descriptor, termios.FIONREAD, count)
    return count[0]
