"""Browsers: what one is, which page made it send a request, under which names they are served, what they are told.

A browser sends what any page tells it to, with our cookie and from the owner's own machine. What follows from that is
decided here, by functions of a request's headers; tracker.Endpoint asks before each call and page. A program sends what
its owner tells it to, and is let through. Nothing here knows what a request is for.
"""

from __future__ import annotations

import functools
import ipaddress
import logging
import re
import time
from collections.abc import Mapping, Sequence
from typing import Literal

from errors import TrackerError

log = logging.getLogger("tracker")

Headers = Mapping[bytes, bytes]

# ── Who asks ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def is_browser(headers: Headers) -> bool:
    """Whether a browser sent the request, as far as can be told; a program that poses as one counts as one.

    PowerShell calls itself Mozilla. Java asks for text/html and pictures, but says no Accept-Encoding: every browser
    does, and no page can take it away or change it.
    """
    program, accept = headers.get(b"user-agent", b""), headers.get(b"accept", b"").lower()
    return (
        (program.startswith(b"Mozilla/") and b"PowerShell" not in program)
        or (b"accept-encoding" in headers and (b"text/html" in accept or b"image/" in accept))
        or (b"accept-language" in headers and not takes_any_language(headers))
        or b"origin" in headers
        or any(name.startswith(b"sec-") and name != b"sec-fetch-mode" for name in headers)
    )


def takes_any_language(headers: Headers) -> bool:
    """Whether it says `Accept-Language: *` as the fetch of Node and of Deno do, and not as a page has a browser do.

    A page may set that header, and in Firefox User-Agent as well. It can add neither the header of Sec-Fetch's that
    Node sends nor the packing that Deno takes: browsers take that one under TLS alone, where they say Sec-Fetch-Site.
    """
    program = b"sec-fetch-mode" in headers or b"br" in headers.get(b"accept-encoding", b"")
    return headers[b"accept-language"].strip() == b"*" and program


PROXIED = re.compile(
    rb"x-forwarded-.*|x-real-ip|forwarded|via|(cf-connecting|true-client|x-client|x-cluster-client|fly-client)-ip|x-envoy-.*"
)


def is_proxied(headers: Headers) -> bool:
    """Whether a proxy says that it has passed the request on. A page can say so, too, of what it has sent itself."""
    return any(map(PROXIED.fullmatch, headers))


def number_of(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    """The address that this is, an IPv4 one also where it is written as IPv6; None for a name."""
    try:
        number = ipaddress.ip_address(host)
    except ValueError:
        return None
    return getattr(number, "ipv4_mapped", None) or number


def is_loopback(host: str) -> bool:
    """Whether this is `localhost` or an address of loopback. False for every other name."""
    number = number_of(host)
    return host == "localhost" if number is None else number.is_loopback


def is_local(client: tuple[str, int] | None, headers: Headers) -> bool:
    """Whether the request was sent on this machine, and not through a proxy.

    A client that is no address is: on a unix socket, or in the process of a test. A browser must have asked for a
    number or a local name: any page can make its own name lead here.
    """
    if is_proxied(headers):
        return False
    number = number_of(client[0]) if client else None
    if number is None:
        return True
    host = host_of(headers.get(b"host", b""))
    return number.is_loopback and (not is_browser(headers) or is_local_name(host) or number_of(host) is not None)


NAT64 = ipaddress.ip_network("64:ff9b::/96")  # a translator's: the whole of IPv4 is in it
LONGEST_ADDRESS = 100  # characters of what is none: a client may have told it to a proxy, which is believed
OWN_NAT64 = ipaddress.ip_network("64:ff9b:1::/48")  # the same, each number is an IPv4 one wherever it has that


def network_of(address: str) -> str:
    """Who counts as one where attempts are counted by address: a subscriber has a whole /64 of IPv6.

    An IPv4 number in one of IPv6 (mapped, 6to4, Teredo, NAT64) is who it is; all behind a translator are not one.
    """
    number = number_of(address)
    if number is None or number.version == 4:
        return str(number or address[:LONGEST_ADDRESS])
    if number.sixtofour or number.teredo:
        return str(number.sixtofour or number.teredo[1])
    if number in NAT64:
        return str(ipaddress.IPv4Address(number.packed[12:]))
    return str(ipaddress.ip_network((number.packed, 128 if number in OWN_NAT64 else 64), strict=False))


def site_of(network: str) -> str:
    """Whose that is at most: one customer may have a /48 of IPv6, which is 65,536 such networks."""
    if not network.endswith("/64"):
        return network
    return str(ipaddress.ip_network(network).supernet(new_prefix=48))


# ── Which page sent it ────────────────────────────────────────────────────────────────────────────────────────────────


def origin_of(headers: Headers) -> bytes | None:
    """The origin of the page that sent the request: what Origin says, or else Referer."""
    if origin := headers.get(b"origin"):
        return origin
    if referer := headers.get(b"referer"):
        scheme, _, rest = referer.partition(b"://")
        return b"%b://%b" % (scheme, re.split(rb"[/?#]", rest, maxsplit=1)[0])
    return None


def lacks_port(headers: Headers) -> bool:
    """Whether the request's origin has a port and Host has none, and nothing else is between them."""
    source, host = origin_of(headers) or b"", headers.get(b"host", b"")
    with_port = re.fullmatch(rb"https?://([\w.\[\]:-]+):\d+", source)
    return bool(with_port) and with_port[1] == host.lower()


def is_origin_of(origin: bytes, host: bytes) -> bool:
    """Whether pages of this origin come from this host; some proxies name the port that goes without saying."""
    scheme, _, place = origin.partition(b"://")
    unsaid = {b"http": b":80", b"https": b":443"}.get(scheme, b":")
    return place != b"" and place.lower().removesuffix(unsaid) == host.lower().removesuffix(unsaid)


def sent_by(headers: Headers) -> Literal["us", "others", "nobody"]:
    """Whose page made a browser send the request, by what browsers tell; nobody's, if nothing does.

    Over plain HTTP, unless it is to localhost, they do not say Sec-Fetch-Site, and a page can hide its Referer.
    """
    site, source = headers.get(b"sec-fetch-site"), origin_of(headers)
    if site is not None:
        return "us" if site in (b"same-origin", b"none") else "others"
    if source is None:
        return "nobody"
    return "us" if is_origin_of(source, headers.get(b"host", b"")) else "others"


def caused_by_another_site(headers: Headers) -> TrackerError:
    """The refusal of what a page of another site has made a browser send, or may have made it."""
    source, host = quoted(origin_of(headers)), quoted(headers.get(b"host"))
    named = f"its Origin or Referer is {source}, Host is {host}"
    if b"sec-fetch-site" in headers:
        named += f", Sec-Fetch-Site is {quoted(headers[b'sec-fetch-site'])}"
    elif origin_of(headers) is None:
        named += ": the browser does not tell"
    return TrackerError("forbidden", f"Refused: this request was caused by another site ({named})")


def quoted(header: bytes | None) -> str:
    """A header in a message; what is long is cut."""
    return repr((header or b"").decode("latin-1")[:200])


# ── Under which names they are served ─────────────────────────────────────────────────────────────────────────────────


def host_of(header: bytes) -> str:
    """The name or number in a Host header, without port, brackets and the dot at a name's end. Empty: there is none."""
    found = re.fullmatch(r"(?:\[([0-9a-f:.]+)\]|([^:@\[\]]+))(?::\d*)?", header.decode("latin-1").strip().lower())
    return (found[1] or found[2]).removesuffix(".") if found else ""


def is_local_name(host: str) -> bool:
    """Whether browsers look for this host on their own machine, whatever anybody's name server says."""
    return host.endswith(".localhost") or is_loopback(host)


class Hosts:
    """Under which names browsers are served, so that no page makes its own name lead here and is then one of ours.

    `allowed` is the setting allowed_hosts. On loopback a browser needs a name of this machine, or else a proxy with
    TLS: a page can send a proxy's headers itself, but has no Sec-Fetch-Site over plain HTTP. A number leads where it
    says; only, on loopback a number of another machine came through a proxy.
    """

    SAY = 60.0  # seconds between two lines in the log about what is refused

    def __init__(self, allowed: Sequence[str], on_loopback: bool = False):
        self.allowed, self.on_loopback = [name.lower().strip("[]") for name in allowed], on_loopback
        self.known = functools.lru_cache(maxsize=1000)(self.is_ours)
        self.said = -self.SAY

    def serve(self, header: bytes) -> bool:
        """The same as is_ours, and quick."""
        return self.known(header[:300])  # no name is that long: what is remembered is bounded

    def is_ours(self, header: bytes) -> bool:
        """Whether a browser may ask for this Host, whatever else it sends."""
        host = host_of(header)
        if not (self.allowed or self.on_loopback) or is_local_name(host) or host in self.allowed:
            return True
        if any(name.startswith("*.") and host.endswith(name[1:]) for name in self.allowed):
            return True
        return not self.on_loopback and number_of(host) is not None

    def check(self, headers: Headers, by_session: bool) -> None:
        """Refuses a browser that asks for a name that is not ours; and, but on loopback, whoever is like one.

        `by_session`: it is a page, or comes with a session. Elsewhere a program may use any name.
        """
        header = headers.get(b"host", b"")
        if self.serve(header) or not (is_browser(headers) or (by_session and not self.on_loopback)):
            return
        by_number = number_of(host_of(header)) is not None
        if self.on_loopback and is_proxied(headers) and (by_number or b"sec-fetch-site" in headers):
            return
        host = host_of(header)
        names = ", ".join(f'"{name}"' for name in (*self.allowed, *([host] if re.fullmatch(r"[\w.:-]+", host) else ())))
        problem = f"Refused: browsers are not served under the name {quoted(header)}. If it is this tracker's, write"
        refusal = TrackerError(
            "forbidden", f"{problem} allowed_hosts = [{names}] into tracker.toml, and start it again"
        )
        if time.monotonic() - self.said >= self.SAY:
            self.said = time.monotonic()
            log.warning("%s", refusal.message)
        raise refusal
