"""Listening sockets that the process has inherited: by number (`fd:3`), or from systemd (`LISTEN_FDS`).

The process that passes a socket on keeps it open, so connections that come during a restart wait in its
queue. The protocol is that of sd_listen_fds(3): the sockets begin at 3, `LISTEN_PID` names the process they are for.
"""

from __future__ import annotations

import os
import socket
from typing import Final

from gatekeeper.settings import ListenAddress

_FIRST: Final = 3


class CannotListen(Exception):
    """An address that cannot be listened on; the text names it and the system's reason."""


def numbers() -> range:
    """Return the numbers of the sockets that systemd has passed to this process; empty without any."""
    count, pid = os.environ.get("LISTEN_FDS", ""), os.environ.get("LISTEN_PID", "")
    # Without a process id they are for any process that inherits them; with another one, for a parent of this one.
    if not count.isdecimal() or pid not in ("", str(os.getpid())):
        return range(0)
    return range(_FIRST, _FIRST + int(count))


def take(number: int) -> socket.socket:
    """Return the inherited socket with this number. Raises `CannotListen`."""
    name = f"cannot listen on fd:{number}"
    try:
        found = socket.socket(fileno=number)
        kind = found.getsockopt(socket.SOL_SOCKET, socket.SO_TYPE)
    except OSError as error:
        raise CannotListen(f"{name}: {error.strerror}; accepted: the number of an inherited socket") from None
    if kind != socket.SOCK_STREAM or found.family not in (socket.AF_INET, socket.AF_INET6, socket.AF_UNIX):
        raise CannotListen(f"{name}: it is not a stream socket")
    if _is_connected(found):
        raise CannotListen(f"{name}: it is a connection, not a listening socket")
    return found


def with_address(address: ListenAddress) -> socket.socket | None:
    """Return the socket of systemd that has this address, None where there is none."""
    for number in numbers():
        found = take(number)
        name = found.getsockname()
        if name == address.path or (address.path is None and name[:2] == (address.host, address.port)):
            return found
        found.detach()
    return None


def _is_connected(found: socket.socket) -> bool:
    try:
        found.getpeername()
    except OSError:
        return False
    return True
