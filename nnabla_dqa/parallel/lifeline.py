"""Ranks that end when another one is gone, whatever the launcher does.

Every rank keeps a TCP connection to rank 0. The operating system ends the
connections of a process that dies; a machine that dies is noticed by
keepalive. A thread waits for that, also while the process is blocked inside a
collective call (MPI, NCCL and NNabla let other Python threads run meanwhile).
"""

from __future__ import annotations

import contextlib
import os
import selectors
import socket
import struct
import sys
import threading
from typing import Any, Callable, Dict, Iterator, List, Optional, Tuple, cast

from nnabla_dqa.parallel.base import ParallelError
from nnabla_dqa.parallel.connections import Offer, accept_all, connect, machine, offer

GRACE = 2.0
"""Seconds a process has, after another is gone, to end with an error message of its own."""
WRITING = 20.0
"""Seconds the end of a process waits for a checkpoint that is being written."""
_GOODBYE, _GONE = b"B", b"F"
_FRAME = struct.Struct("!cI")
_writing = threading.RLock()


@contextlib.contextmanager
def critical() -> Iterator[None]:
    """While a thread is in this block, the loss of a rank does not end the process for 20 s."""
    with _writing:
        yield


def end_process() -> None:
    """End this process with status 1 at once, whatever its threads do; does not return."""
    # Someone may hold the lock of a stream for ever.
    _after(1.0, lambda: os._exit(1))
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError, AttributeError):
            stream.flush()
    os._exit(1)


def _after(seconds: float, action: Callable[[], None]) -> None:
    timer = threading.Timer(seconds, action)
    timer.daemon = True
    timer.start()


def _end_for(rank: int) -> None:
    with contextlib.suppress(OSError):
        os.write(2, f"rank {rank} is gone; stopping, the checkpoint is kept\n".encode())
    _writing.acquire(timeout=WRITING)
    end_process()


class Lifeline:
    """The connections of one rank and the thread that watches them.

    Args:
        rank: Of this process.
        connections: Sockets by rank of the other end: those of all others on
            rank 0, that of rank 0 elsewhere.
        on_lost: Called with the rank that is gone, in the watching thread,
            :data:`GRACE` seconds after it was noticed, unless this process
            leaves meanwhile. Default: end the process.
    """

    def __init__(
        self,
        rank: int,
        connections: Dict[int, socket.socket],
        on_lost: Callable[[int], None] = _end_for,
    ) -> None:
        self.rank = rank
        self._connections = dict(connections)
        self._on_lost = on_lost
        self._parted: List[int] = []
        self._quiet = threading.Event()
        self._lock = threading.Lock()
        self._wake, self._woken = socket.socketpair()
        self._thread = threading.Thread(target=self._watch, name="lifeline", daemon=True)
        self._thread.start()

    @classmethod
    def between(cls, rank: int, size: int, gather: Callable[[Any], List[Any]]) -> Lifeline:
        """Connect all ranks; all call it.

        Args:
            rank: Of this process.
            size: Number of ranks.
            gather: Takes the value of this rank to the list of those of all.

        Raises:
            ParallelError: On every rank, if one cannot reach rank 0 within a minute.
        """
        one_machine = len(set(gather(machine()))) == 1
        listening = offer(one_machine) if rank == 0 else None
        told = gather(None if listening is None else list(listening.offer))[0]
        error = ""
        connections: Dict[int, socket.socket] = {}
        try:
            if listening is not None:
                connections = accept_all(listening, size)
            else:
                connections = {0: connect(Offer(*told), rank)}
        except OSError as problem:
            error = str(problem)
        failed = [text for text in gather(error) if text]
        if failed:
            for connection in connections.values():
                connection.close()
            raise ParallelError(failed[-1])
        return cls(rank, connections)

    def close(self, timeout: float = 10.0) -> None:
        """Part in good order: all ranks call it at about the same time, after a barrier.

        Args:
            timeout: Seconds to wait for the goodbyes of the others.
        """
        self._send(_GOODBYE, self.rank)
        self._thread.join(timeout)
        self._quiet.set()
        self._wake.close()
        self._thread.join()
        self._woken.close()
        for connection in self._connections.values():
            connection.close()

    def leave(self, limit: float) -> None:
        """Tell the others that this process ends.

        Args:
            limit: Seconds after which it ends in any case.
        """
        self._quiet.set()
        _after(limit, end_process)
        self._send(_GONE, self.rank)

    def wait_for_others(self, timeout: float) -> None:
        """Wait until the others have ended, at most ``timeout`` seconds."""
        self._thread.join(timeout)

    def _send(self, kind: bytes, rank: int) -> None:
        frame = _FRAME.pack(kind, rank)
        with self._lock:
            for other, connection in self._connections.items():
                if other != rank:
                    with contextlib.suppress(OSError):
                        connection.sendall(frame)

    def _watch(self) -> None:
        lost: Optional[int] = None
        with selectors.DefaultSelector() as selector:
            for other, connection in self._connections.items():
                selector.register(connection, selectors.EVENT_READ, other)
            selector.register(self._woken, selectors.EVENT_READ, None)
            while len(selector.get_map()) > 1:
                for key, _ in selector.select():
                    if key.data is None:
                        return
                    rank, ended = self._read(key.fileobj, key.data)
                    if ended:
                        selector.unregister(key.fileobj)
                    if rank is not None and lost is None:
                        lost = rank
                        self._report(lost)

    def _read(self, connection: Any, other: int) -> Tuple[Optional[int], bool]:
        """(rank that is gone or None, whether the connection has ended)."""
        try:
            frame = connection.recv(_FRAME.size, socket.MSG_WAITALL)
        except OSError:
            frame = b""
        if len(frame) < _FRAME.size:
            return (None if other in self._parted else other), True
        kind, rank = cast(Tuple[bytes, int], _FRAME.unpack(frame))
        if kind == _GOODBYE:
            self._parted.append(other)
            return None, True
        return rank, rank == other

    def _report(self, lost: int) -> None:
        """Rank 0 tells the others; the process ends, unless it is ending by itself."""
        if self.rank == 0:
            self._send(_GONE, lost)
        if not self._quiet.wait(GRACE):
            self._on_lost(lost)
