"""TCP connections from every rank to rank 0, and to nobody else."""

from __future__ import annotations

import contextlib
import hmac
import secrets
import socket
import struct
import time
from pathlib import Path
from typing import Dict, List, NamedTuple

TIMEOUT = 60.0
"""Seconds within which all ranks have to be connected."""
_HALF = 16
_HELLO = struct.Struct(f"!{_HALF}sI")
_SIOCGIFADDR = 0x8915
_KEEPALIVE = {"TCP_KEEPIDLE": 10, "TCP_KEEPINTVL": 5, "TCP_KEEPCNT": 5}
"""A machine that is gone is noticed after 10 + 5 * 5 = 35 seconds."""


class Offer(NamedTuple):
    """Where rank 0 listens; everything JSON can hold.

    ``hosts`` are names and addresses to try, ``token`` is 64 hexadecimal
    digits: the first half is what a rank says, the second what rank 0 answers.
    """

    hosts: List[str]
    port: int
    token: str


class Listening(NamedTuple):
    """The socket of an offer."""

    offer: Offer
    socket: socket.socket


def offer(one_machine: bool) -> Listening:
    """Listen on a free port.

    Args:
        one_machine: Only this machine can connect.
    """
    listener = socket.create_server(("127.0.0.1", 0)) if one_machine else _public_listener()
    hosts = ["127.0.0.1"] if one_machine else _hosts()
    token = secrets.token_hex(2 * _HALF)
    return Listening(Offer(hosts, listener.getsockname()[1], token), listener)


def _public_listener() -> socket.socket:
    if socket.has_dualstack_ipv6():
        # IPv6 may be known and yet switched off.
        with contextlib.suppress(OSError):
            return socket.create_server(
                ("", 0), family=socket.AF_INET6, backlog=1024, dualstack_ipv6=True
            )
    return socket.create_server(("", 0), backlog=1024)


def accept_all(
    listening: Listening, size: int, timeout: float = TIMEOUT
) -> Dict[int, socket.socket]:
    """The connections of ranks 1 to ``size - 1``, by rank; closes the listening socket.

    Strangers are sent away.

    Raises:
        OSError: Not all came in time.
    """
    end = time.monotonic() + timeout
    connections: Dict[int, socket.socket] = {}
    with listening.socket as listener:
        while len(connections) < size - 1:
            listener.settimeout(max(0.01, end - time.monotonic()))
            try:
                connection, _ = listener.accept()
            except OSError:
                for connection in connections.values():
                    connection.close()
                missing = sorted(set(range(1, size)) - set(connections))
                raise OSError(
                    f"rank {missing[0]} did not connect to rank 0 ({listening.offer.hosts[0]} port "
                    f"{listening.offer.port}) within {timeout:g} s; let the machines reach each "
                    f"other over TCP"
                ) from None
            rank = _welcome(connection, listening.offer.token)
            if 0 < rank < size and rank not in connections:
                connections[rank] = _watched(connection)
            else:
                connection.close()
    return connections


def connect(to: Offer, rank: int, timeout: float = TIMEOUT) -> socket.socket:
    """The connection of ``rank`` to rank 0.

    Raises:
        OSError: None of its addresses answers.
    """
    secret, answer = _halves(to.token)
    end = time.monotonic() + timeout
    while time.monotonic() < end:
        for host in to.hosts:
            with contextlib.suppress(OSError), contextlib.ExitStack() as stack:
                connection = stack.enter_context(socket.create_connection((host, to.port), 5.0))
                connection.sendall(_HELLO.pack(secret, rank))
                if hmac.compare_digest(_receive(connection, _HALF), answer):
                    stack.pop_all()
                    return _watched(connection)
        time.sleep(0.5)
    raise OSError(
        f"rank {rank} on {socket.gethostname()} cannot connect to rank 0 ({', '.join(to.hosts)}, "
        f"port {to.port}); let the machines reach each other over TCP"
    )


def _welcome(connection: socket.socket, token: str) -> int:
    """The rank at the other end, -1 for a stranger."""
    secret, answer = _halves(token)
    try:
        connection.settimeout(2.0)
        told, rank = _HELLO.unpack(_receive(connection, _HELLO.size))
        if not hmac.compare_digest(told, secret):
            return -1
        connection.sendall(answer)
        return int(rank)
    except (OSError, struct.error):
        return -1


def _receive(connection: socket.socket, size: int) -> bytes:
    """``size`` bytes, fewer if the connection ends before."""
    content = b""
    while len(content) < size:
        part = connection.recv(size - len(content))
        if not part:
            break
        content += part
    return content


def _halves(token: str) -> List[bytes]:
    content = bytes.fromhex(token)
    return [content[:_HALF], content[_HALF:]]


def _watched(connection: socket.socket) -> socket.socket:
    connection.settimeout(None)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in _KEEPALIVE.items():
        if hasattr(socket, name):
            connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
    return connection


def machine() -> str:
    """Equal for two processes only if they reach each other by the loopback address."""
    with contextlib.suppress(OSError):
        return socket.gethostname() + Path("/proc/sys/kernel/random/boot_id").read_text("ascii")
    return socket.gethostname()


def _hosts() -> List[str]:
    """Names and addresses of this machine: a name may be unknown elsewhere, or mean loopback."""
    name = socket.gethostname()
    found = [name]
    with contextlib.suppress(OSError):
        found += socket.gethostbyname_ex(name)[2]
    found += _interfaces()
    with contextlib.suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        # Sends nothing: it only asks which address the way out has.
        probe.connect(("192.0.2.1", 9))
        found.append(probe.getsockname()[0])
    return [host for host in dict.fromkeys(found) if not host.startswith("127.")]


def _interfaces() -> List[str]:
    """The IPv4 addresses of the network interfaces, on Linux."""
    found: List[str] = []
    with contextlib.suppress(ImportError, OSError), socket.socket() as asked:
        import fcntl

        for _, name in socket.if_nameindex():
            with contextlib.suppress(OSError):
                request = struct.pack("256s", name.encode()[:15])
                answer = fcntl.ioctl(asked.fileno(), _SIOCGIFADDR, request)
                found.append(socket.inet_ntoa(answer[20:24]))
    return found
