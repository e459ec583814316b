"""Where the tracker listens: addresses of both families, and a socket in the file system.

    Settings.hosts, .port, .socket ─► listeners ─► sockets, which are closed (and their files gone) at the end

Nothing here knows what comes in.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import browsers
from connections import limit_unsent
from errors import TrackerError

BACKLOG = 2048
TRIES = 20  # to find a port that is free at each of several addresses
EVERY_IPV4, EVERY_IPV6 = "0.0.0.0", "::"
NOT_OURS = errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT  # an address of a name that this machine has not got
MODE = 0o660


@contextlib.contextmanager
def listeners(settings: Any) -> Iterator[list[socket.socket]]:
    """The listening sockets. Refuses (start) an address, a port or a path that cannot be had, saying which."""
    with contextlib.ExitStack() as open_ones:
        sockets = at_addresses(settings.hosts, settings.port, open_ones)
        if settings.socket:
            sockets.append(listen_at(Path(settings.socket), open_ones))
        if not sockets:
            raise TrackerError("start", "host: there is no address to listen on, and no socket")
        yield sockets


def at_addresses(hosts: tuple[str, ...], port: int, open_ones: contextlib.ExitStack) -> list[socket.socket]:
    """Sockets at the same port of all addresses; of port 0 at one that is free at all of them."""
    for tries in reversed(range(TRIES)):
        sockets: list[socket.socket] = []
        with contextlib.ExitStack() as undo:
            undo.callback(lambda: [sock.close() for sock in sockets])  # noqa: B023
            for host in hosts:
                try:
                    listen_on(host, port, EVERY_IPV4 not in hosts, sockets)
                except (OSError, ValueError) as error:
                    if tries and not port and sockets and getattr(error, "errno", 0) == errno.EADDRINUSE:
                        break
                    place = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
                    raise TrackerError("start", f"{place}: cannot be listened on: {reason(error)}") from None
            else:
                open_ones.push(undo.pop_all())
                return sockets
    raise AssertionError


def listen_on(host: str, port: int, both: bool, sockets: list[socket.socket]) -> None:
    """Adds a socket for each address that a name has on this machine, at the port of those that there are.

    Where it listens for all of IPv6, it does so for IPv4 too (`both`). OSError, ValueError for what cannot be had.
    """
    missing, before = None, len(sockets)
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    for family, address in dict.fromkeys((family, address) for family, _, _, _, address in found):
        if any(address[0] == sock.getsockname()[0] for sock in sockets):
            continue
        there = sockets[0].getsockname()[1] if sockets else port
        try:
            sockets.append(listen((address[0], there, *address[2:]), family, both))
        except OSError as error:
            if error.errno not in NOT_OURS:
                raise
            missing = error
    if missing and len(sockets) == before:
        raise missing


def reason(error: Exception) -> str:
    """Why an address cannot be listened on, in words."""
    if isinstance(error, ValueError):
        return "it is neither an address nor a name"
    number = getattr(error, "errno", None) or 0
    return os.strerror(number) if number > 0 else getattr(error, "strerror", None) or str(error)


def listen(address: tuple, family: int = socket.AF_INET, both: bool = False) -> socket.socket:
    """A listening socket. OSError for an address or port that cannot be had."""
    both = both and address[0] == EVERY_IPV6 and socket.has_dualstack_ipv6()
    sock = socket.create_server(address, family=family, backlog=BACKLOG, dualstack_ipv6=both)
    limit_unsent(sock)
    return sock


# A socket in the file system


def listen_at(path: Path, open_ones: contextlib.ExitStack) -> socket.socket:
    """A listening socket at this path, for its owner and group. One that a killed tracker has left makes room."""
    if not hasattr(socket, "AF_UNIX"):
        raise TrackerError("start", f"{path}: this system has no such sockets", "socket")
    try:
        make_room(path)
        sock = open_ones.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
        with contextlib.suppress(OSError, AttributeError):
            os.fchmod(sock.fileno(), MODE)  # Linux makes the file so, or less; others heed the next one alone
        sock.bind(str(path))
        made = os.lstat(path)
        open_ones.callback(remove, path, made)
        os.chmod(path, MODE)
        sock.listen(BACKLOG)
    except (OSError, ValueError) as error:
        why = reason(error) if isinstance(error, OSError) else str(error)
        raise TrackerError("start", f"{path}: cannot be listened on: {why}", "socket") from None
    return sock


def make_room(path: Path) -> None:
    """Deletes a socket behind which nobody listens any more. Refuses (start) anything else that is there."""
    try:
        mode = os.lstat(path).st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise TrackerError("start", f"{path}: cannot be listened on: something else is there", "socket")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)  # of one that is busy, too
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            return path.unlink(missing_ok=True)
        except BlockingIOError:
            pass
    raise TrackerError("start", f"{path}: cannot be listened on: another program does", "socket")


def remove(path: Path, made: os.stat_result) -> None:
    """Deletes the socket that was made, if it still is the one."""
    with contextlib.suppress(OSError):
        if os.path.samestat(os.lstat(path), made):
            path.unlink()


# What is said of them


def url_of(sock: socket.socket) -> str:
    """Where a listening socket is reached, without a slash at the end."""
    if in_file_system(sock):
        return f"unix:{sock.getsockname()}"
    host, port = sock.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def is_local(sock: socket.socket) -> bool:
    """Whether nobody on another machine reaches it by itself."""
    return in_file_system(sock) or browsers.is_loopback(sock.getsockname()[0])


def in_file_system(sock: Any) -> bool:
    return hasattr(socket, "AF_UNIX") and getattr(sock, "family", None) == socket.AF_UNIX
