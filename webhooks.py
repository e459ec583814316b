"""An event sent to a URL that a stranger chose, without letting it reach inside.

`send` sends one request and gives back what was answered. Whoever chooses the URL must not make the tracker talk to its
own machine or network, so:

    URL ─► read_url (http or https, nothing ambiguous) ─► Guard.connect_tcp: the name resolved, once
                                                             │
                              every address of it checked ◄──┘──► a connection to exactly the address that was checked

The check is in the function that connects: a name that resolves differently the next time has no next time. Redirects
are answers like others; proxies, cookies and connections of earlier events do not exist here.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import functools
import ipaddress
import math
import os
import queue
import re
import socket
import ssl
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import httpcore

from errors import TrackerError
from turns import FairQueue

TIMEOUT = 3.0  # seconds for everything: the name, the connection, TLS, sending and the whole answer
MAX_ANSWER = 2**16  # bytes of an answer that are kept; the rest is not even read
MAX_READ = 2**19  # bytes of what it sends, with interim answers, headers and the lengths of chunks
MAX_PIECE = 2**11  # bytes that are read at once: what is read takes long if it is thousands of interim answers
MOST_REASON = 200  # characters of why it cannot be reached
MAX_URL = 4096  # characters
ATTEMPTS = 4  # addresses of one name that are tried: a name with a thousand must not make a scanner of the tracker
LOOKUPS = 8  # names that are looked up at the same time, in each of the lanes: see look_up
AT_ONCE = 24  # events on their way for those who wait for an answer: each takes a file descriptor

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network
Resolve = Callable[[str, int], Awaitable[Sequence[str]]]


class Refused(Exception):
    """The URL cannot be used, or leads to where webhooks may not go. The message says which, for a person."""


class Unreachable(Exception):
    """Nobody is there, or what is there does not speak HTTP (or TLS) as it must."""


class TimedOut(Exception):
    """The time limit passed before the whole answer had come."""


class Answer(NamedTuple):
    """What a webhook answered: a final status (200 to 599; redirects are not followed) and at most 64 KiB of text."""

    status: int
    text: str


Headers = Sequence[tuple[bytes, bytes]]
JSON: Headers = ((b"Content-Type", b"application/json"),)


async def send(
    url: str,
    content: bytes,
    networks: Sequence[str] = (),
    timeout: float = TIMEOUT,
    *,
    method: str = "PUT",
    headers: Headers = JSON,
    trusted: bool = False,
    resolve: Resolve | None = None,
    backend: httpcore.AsyncNetworkBackend | None = None,
) -> Answer:
    """Sends the content, as a rule JSON, to a URL and returns the answer, whatever its status.

    Raises Refused, Unreachable, or, `timeout` seconds after the call, TimedOut. `networks` are those of the setting
    webhook_networks. `trusted`: its name waits for none of a stranger's that hangs. `resolve` gives a host's addresses,
    `backend` connects to one of them: the system's if absent.
    """
    target = read_url(url)
    guard = Guard(
        read_networks(networks),
        resolve or functools.partial(look_up, trusted=trusted),
        backend or httpcore.AnyIOBackend(),
    )
    host = target.host.decode()
    try:
        async with asyncio.timeout(timeout):
            return await _exchange(method, target, headers, content, guard, timeout)
    except (TimeoutError, httpcore.TimeoutException) as error:
        raise TimedOut(f"The webhook at {host} did not answer within {timeout:g} s") from error
    except (httpcore.NetworkError, httpcore.ProtocolError, ssl.SSLError) as error:  # TLS may break later, too
        raise Unreachable(f"The webhook at {host} cannot be reached: {_reason(error)}") from error


class Relay:
    """Events that somebody has sent, and waits for: some at a time, the others in turns.

    They go on when their sender has gone, so the bound on connections is none on these.
    """

    def __init__(self, at_once: int = AT_ONCE):
        self.queue = FairQueue(at_once)

    @contextlib.asynccontextmanager
    async def turn(self, whose: str, timeout: float, trusted: bool = False) -> AsyncIterator[None]:
        """For as long as it is somebody's turn. Raises TimedOut if it has not come after so many seconds.

        Every second turn is of those who are trusted, if they want it: the others may come from many addresses.
        """
        rank = FairQueue.KNOWN if trusted else FairQueue.OTHER
        async with contextlib.AsyncExitStack() as stack:
            try:
                async with asyncio.timeout(timeout):
                    await stack.enter_async_context(self.queue.turn(rank, whose))
            except TimeoutError:
                raise TimedOut("Too many events are on their way at once: please try again") from None
            yield


async def _exchange(
    method: str, target: httpcore.URL, headers: Headers, content: bytes, guard: Guard, timeout: float
) -> Answer:
    """One request on a connection of its own, and its answer. Refuses a status that is none."""
    from tracker import __version__

    # Reading the certificate store takes long enough to hold up every other request.
    context = await asyncio.to_thread(tls_context) if target.scheme == b"https" else None
    headers = [
        (b"Host", _authority(target)),
        *headers,
        (b"Content-Length", b"%d" % len(content)),
        (b"User-Agent", b"task-tracker/%s" % __version__.encode()),
        (b"Accept-Encoding", b"identity"),
        (b"Connection", b"close"),
    ]
    async with httpcore.AsyncConnectionPool(ssl_context=context, max_connections=1, network_backend=guard) as pool:
        extensions = {"timeout": {"connect": timeout}}
        async with pool.stream(method, target, headers=headers, content=content, extensions=extensions) as response:
            if not 200 <= response.status <= 599:
                raise httpcore.RemoteProtocolError(f"It answered with the status {response.status}.")
            return Answer(response.status, await _text(response))


async def _text(response: httpcore.Response) -> str:
    """The beginning of the answer's content. Bytes that are no UTF-8 are replaced."""
    content = bytearray()
    async for chunk in response.aiter_stream():
        content += chunk
        if len(content) >= MAX_ANSWER:
            break
        await asyncio.sleep(0)  # thousands of tiny chunks may be there at once, and other requests have their turn
    return content[:MAX_ANSWER].decode(errors="replace")


def _reason(error: BaseException) -> str:
    """What went wrong, in words: of a failed connection what the system said first."""
    if isinstance(error, httpcore.ProtocolError):  # it may quote what has come
        return str(error)[:MOST_REASON]
    while below := error.__cause__ or error.__context__:
        error = below
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"Its certificate is not valid: {error.verify_message}"
    if isinstance(error, ssl.SSLError):
        return f"TLS failed: {error.reason or error}"
    if isinstance(error, OSError) and error.errno:
        return os.strerror(error.errno)
    return str(error) or "The connection was closed"


@functools.cache
def tls_context() -> ssl.SSLContext:
    """Verifies certificates and names: by the system's authorities (SSL_CERT_FILE may name a file) and the web's."""
    return httpcore.default_ssl_context()


# ── URLs ──────────────────────────────────────────────────────────────────────────────────────────────────────────────

NAME = re.compile(r"[a-z0-9_-]{1,63}(?:\.[a-z0-9_-]{1,63})*+\.?")
MAX_NAME = 253  # characters


def read_url(url: str) -> httpcore.URL:
    """The URL in the parts that are sent. Refuses what is no URL of http(s), or is read differently by two programs."""
    if len(url) > MAX_URL:
        raise Refused(f"The webhook's URL is longer than {MAX_URL} characters")
    # urlsplit drops line breaks without a word, and programs differ on backslashes.
    if bad := re.search(r"[^!-~]|\\", url):
        raise Refused(
            f"The webhook's URL contains {bad[0]!a}: write other characters than ASCII's as %XX, and in the host "
            "name as xn--…"
        )
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise Refused(f"The webhook's URL is no URL: {error}") from error
    if parts.scheme not in ("http", "https"):
        raise Refused("The webhook's URL must begin with http:// or https://")
    if not parts.netloc:
        raise Refused("The webhook's URL has no host name")
    if "@" in parts.netloc:
        raise Refused("The webhook's URL must not contain a user name or password")
    if port == 0:
        raise Refused("The webhook's URL names the port 0, to which nothing can be sent")
    target = (parts.path or "/") + ("?" + parts.query if parts.query else "")
    return httpcore.URL(scheme=parts.scheme, host=_read_host(parts.netloc), port=port, target=target)


def _read_host(netloc: str) -> str:
    """The name or address in a URL's network location; an IPv6 address without its brackets."""
    if bracketed := re.fullmatch(r"\[([^\[\]]*)\](:\d*)?", netloc):
        host = bracketed[1].lower()
        # A zone such as %eth0 would choose the network interface.
        if "%" in host or not _is_ipv6(host):
            raise Refused(f"The webhook's URL names [{host}], which is no IPv6 address")
        return host
    host = netloc.partition(":")[0].lower()
    if len(host) > MAX_NAME or not NAME.fullmatch(host):
        raise Refused(f"The webhook's URL names the host {host!r}, which is no host name")
    return host


def _is_ipv6(text: str) -> bool:
    try:
        IPv6Address(text)
    except ValueError:
        return False
    return True


def _authority(target: httpcore.URL) -> bytes:
    """The Host header."""
    host = b"[%s]" % target.host if b":" in target.host else target.host
    return host if target.port is None else b"%s:%d" % (host, target.port)


# ── Addresses ─────────────────────────────────────────────────────────────────────────────────────────────────────────

# What Python's is_global lets through, in one version or another, though it is not an ordinary address of one public
# machine, or though another address hides in it.
SPECIAL = tuple(
    ipaddress.ip_network(network)
    for network in (
        "192.0.0.0/24",  # protocol assignments; a cloud's metadata service is in here
        "192.88.99.0/24",  # 6to4 relays
        "168.63.129.16/32",  # a cloud's service for its machines, on each of them
        "224.0.0.0/3",  # multicast, reserved, broadcast
        # Global unicast addresses of IPv6 are those of 2000::/3. Outside are ::, ::1, IPv4-mapped and -compatible
        # addresses, both prefixes of NAT64, and unique local, link-local, site-local and multicast ones.
        "::/3",
        "4000::/2",
        "8000::/1",
        "2001::/23",  # protocol assignments: Teredo, ORCHID
        "2002::/16",  # 6to4: an IPv4 address is in it
        "3fff::/20",  # documentation
    )
)


def is_public(address: Address) -> bool:
    """Whether this is an ordinary address of the public internet."""
    return address.is_global and not any(address in network for network in SPECIAL)


def is_own(address: Address) -> bool:
    """Whether this is an address of the machine that the tracker runs on.

    A public one would pass by the machine's firewall, as connections of a machine to itself do. Raises Unreachable
    where that cannot be told.
    """
    try:
        probe = socket.socket(socket.AF_INET if address.version == 4 else socket.AF_INET6, socket.SOCK_DGRAM)
    except OSError as error:
        if error.errno == errno.EAFNOSUPPORT:  # it has no IPv6
            return False
        raise Unreachable(f"The tracker's machine can reach nobody now: {os.strerror(error.errno)}") from error
    with probe:
        probe.setblocking(False)
        try:
            probe.connect((str(address), 9))  # sends nothing: it asks the system for the route
        except OSError:
            return False
        return probe.getsockname()[0] == str(address)


def read_networks(networks: Iterable[str]) -> tuple[Network, ...]:
    """The networks of the setting webhook_networks. Refuses what is none: the tracker does not start with it."""
    found = []
    for network in networks:
        try:
            found.append(ipaddress.ip_network(network))
        except ValueError as error:
            problem = f"webhook_networks: {network!r} is no network such as 10.1.2.0/24 ({error})"
            raise TrackerError("start", problem) from error
    return tuple(found)


def allowed(host: str, addresses: Iterable[str], networks: Sequence[Network]) -> list[Address]:
    """The addresses of a host, or Refused if webhooks may not go to one of them.

    One is enough, also beside public ones: else it would depend on chance, or on who answers first, whether a webhook
    gets its events. An IPv4 network does not cover the IPv4-mapped form of its addresses, which nobody needs to write.
    """
    found = [ipaddress.ip_address(address) for address in addresses]
    for address in found:
        if any(address in network for network in networks):
            continue
        # Not told: the address, which a stranger could not otherwise find out by the name.
        if not is_public(address) or is_own(address):
            raise Refused(
                f"The webhook's host {host} is not on the public internet, or is the tracker's own machine; "
                "webhook_networks in tracker.toml can allow its network"
            )
    return found


# ── Connecting ────────────────────────────────────────────────────────────────────────────────────────────────────────


class Guard(httpcore.AsyncNetworkBackend):
    """Connects to a host after checking its addresses, and to nothing but them."""

    def __init__(self, networks: Sequence[Network], resolve: Resolve, backend: httpcore.AsyncNetworkBackend):
        self.networks, self.resolve, self.backend = networks, resolve, backend

    async def connect_tcp(
        self, host: str, port: int, timeout: float | None = None, **options: Any
    ) -> httpcore.AsyncNetworkStream:
        """A connection to one of the host's addresses. Raises Refused when webhooks may not go to one of them."""
        addresses = allowed(host, await self.resolve(host, port), self.networks)[:ATTEMPTS]
        problem: Exception = Unreachable(f"The webhook's host {host} has no address")
        for address in addresses:
            try:
                # An address that does not answer leaves time for the others.
                limit = None if timeout is None else timeout / len(addresses)
                return Bounded(await self.backend.connect_tcp(str(address), port, timeout=limit, **options))
            except (httpcore.ConnectError, httpcore.ConnectTimeout) as error:
                problem = error
        raise problem


class Bounded(httpcore.AsyncNetworkStream):
    """A connection over which not too much comes, and in small pieces, between which others have their turn."""

    def __init__(self, stream: httpcore.AsyncNetworkStream):
        self.stream, self.left = stream, MAX_READ
        self.write, self.aclose, self.get_extra_info = stream.write, stream.aclose, stream.get_extra_info

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        """The next piece. ReadError when too much has come."""
        await asyncio.sleep(0)
        piece = await self.stream.read(min(max_bytes, MAX_PIECE), timeout)
        self.left -= len(piece)
        if self.left < 0:
            raise httpcore.ReadError("It sends too much before its answer ends")
        return piece

    async def start_tls(self, *args: Any, **kwargs: Any) -> Bounded:
        return Bounded(await self.stream.start_tls(*args, **kwargs))


# A name whose server does not answer blocks its thread for many seconds. The event loop's default threads, which
# passwords need, must not wait for such names, nor must the end of the process, as it does for an executor's threads.
# And anybody can have as many such names looked up as there are threads: those who are trusted have some of their own,
# and so have the domains of which a name has taken long, as whoever has one that hangs has any number of them.
Names = queue.SimpleQueue[tuple[Future[list[str]], str, int]]
TRUSTED, OTHERS, SLOW = "-trusted", "", "-slow"
_names: dict[str, Names] = {lane: queue.SimpleQueue() for lane in (TRUSTED, OTHERS, SLOW)}


async def look_up(host: str, port: int, trusted: bool = False) -> list[str]:
    """The addresses of a host as the system resolves it, in the order in which they should be tried.

    Raises Unreachable when there are none. Whoever stops waiting gives up a place in the queue.
    """
    lane = TRUSTED if trusted else SLOW if SLOW_DOMAINS.has(host) else OTHERS
    _start_threads(lane)
    found: Future[list[str]] = Future()
    _names[lane].put((found, host, port))
    try:
        return await asyncio.wrap_future(found)
    except OSError as error:
        raise Unreachable(f"The webhook's host {host} cannot be found: {error.strerror}") from error


class SlowDomains:
    """The domains of which a name takes long, or has lately."""

    LONG = 2.0  # seconds
    LATELY = 600.0  # seconds
    MOST = 1000  # are remembered

    def __init__(self) -> None:
        self.lock, self.since = threading.Lock(), dict[str, float]()  # when a name of it had taken too long
        self.running = dict[object, tuple[str, float]]()  # the names that are looked up, and since when

    def has(self, host: str) -> bool:
        domain, now = domain_of(host), time.monotonic()
        with self.lock:
            began = [began for other, began in self.running.values() if other == domain]
            return min(began, default=now) < now - self.LONG or now - self.since.get(domain, -math.inf) < self.LATELY

    @contextlib.contextmanager
    def timed(self, host: str) -> Iterator[None]:
        """While the name is looked up."""
        mine, domain, began = object(), domain_of(host), time.monotonic()
        with self.lock:
            self.running[mine] = domain, began
        try:
            yield
        finally:
            now = time.monotonic()
            with self.lock:
                del self.running[mine]
                if now - began >= self.LONG:
                    self.since.pop(domain, None)  # behind the others
                    self.since[domain] = now
                if len(self.since) > self.MOST:
                    del self.since[next(iter(self.since))]


SLOW_DOMAINS = SlowDomains()


def domain_of(host: str) -> str:
    """Whose the name is, as far as its last two labels tell: of some, many people's together."""
    return ".".join(host.rstrip(".").lower().rsplit(".", 2)[-2:])


@functools.cache
def _start_threads(lane: str) -> None:
    for number in range(LOOKUPS):
        name = f"webhook-names{lane}-{number}"
        threading.Thread(target=_look_up_names, args=(_names[lane],), name=name, daemon=True).start()


def _look_up_names(names: Names) -> None:
    """What each of the threads does for ever: one name after the other."""
    while True:
        found, host, port = names.get()
        if not found.set_running_or_notify_cancel():
            continue
        try:
            with SLOW_DOMAINS.timed(host):
                entries = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
            found.set_result([str(address[0]) for *_, address in entries])
        except Exception as error:
            found.set_exception(error)
