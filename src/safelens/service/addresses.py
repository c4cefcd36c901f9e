"""Which addresses of other machines this service may connect to.

Knows hosts that the operator named, and addresses that are nobody's business. A name is resolved once and the
connection made to that very address: an answer that DNS changes its mind about later is never asked for.
"""

from __future__ import annotations

import ipaddress
import socket
import ssl
from collections.abc import Iterable, Sequence
from urllib.parse import urlsplit

import httpcore2

_MAX_URL = 2048
_NAT64 = ipaddress.ip_network("64:ff9b::/96")
_TIMEOUT_S = 10.0


class Refused(Exception):
    """An address that may not be used; the message says why, and what to do."""


class Hosts:
    """Hosts that URLs may name.

    Args:
        allowed: names, addresses or `*.example.com`.
        internal: of these, those that may lie at private or loopback addresses.
        setting: named in messages.
    """

    def __init__(self, allowed: Sequence[str], internal: Sequence[str], setting: str) -> None:
        self._allowed = allowed
        self._internal = internal
        self._setting = setting

    def check(self, url: str) -> tuple[str, int]:
        """Host and port of a URL that may be used, as far as that can be said without resolving it.

        Raises:
            Refused: it may not.
        """
        if len(url) > _MAX_URL or not url.isascii() or not url.isprintable() or " " in url:
            raise Refused(f"the URL is longer than {_MAX_URL} or holds characters that no URL has")
        try:
            parts = urlsplit(url)
            host, port = (parts.hostname or "").rstrip("."), parts.port
        except ValueError as error:
            raise Refused(f"no URL: {error}") from None
        if parts.scheme not in ("http", "https") or not host:
            raise Refused("expected http://HOST/... or https://HOST/...")
        if parts.username is not None or parts.password is not None:
            raise Refused("the URL holds a user or password; expected none")
        if not _named(host, self._allowed):
            raise Refused(
                f"the host {host} is not allowed; the operator can allow it in {self._setting}"
            )
        return host, port or (443 if parts.scheme == "https" else 80)

    def resolve(self, host: str, port: int) -> str:
        """The one IP address to connect to.

        Raises:
            Refused: one of the host's addresses is not public, and the host is not internal.
            OSError: it has none.
        """
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        addresses = [str(info[4][0]).partition("%")[0] for info in found]
        if not _named(host.lower(), self._internal):
            for address in addresses:
                if not is_public(address):
                    raise Refused(f"the host {host} lies at {address}, which is not public")
        return addresses[0]


def is_public(address: str) -> bool:
    """Whether an IP address is one of the public internet, whatever IPv6 wraps it in."""
    ip = ipaddress.ip_address(address)
    if isinstance(ip, ipaddress.IPv6Address):
        inner = ip.ipv4_mapped or ip.sixtofour or (ip.teredo[1] if ip.teredo else None)
        if inner is None and ip in _NAT64:
            inner = ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)
        if inner is not None:
            return is_public(str(inner))
    return ip.is_global and not ip.is_multicast and not ip.is_reserved


def _named(host: str, patterns: Iterable[str]) -> bool:
    return any(
        host.endswith(pattern[1:]) if pattern.startswith("*.") else host == pattern
        for pattern in patterns
    )


class _Network(httpcore2.NetworkBackend):
    """Connects to the address that was checked; TLS still asks for the host's name."""

    def __init__(self, hosts: Hosts) -> None:
        self._hosts = hosts
        self._tcp = httpcore2.SyncBackend()

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[httpcore2.SOCKET_OPTION] | None = None,
    ) -> httpcore2.NetworkStream:
        try:
            address = self._hosts.resolve(host, port)
        except OSError as error:
            raise httpcore2.ConnectError(f"{host} cannot be resolved ({error})") from error
        return self._tcp.connect_tcp(address, port, timeout, local_address, socket_options)


def connections(hosts: Hosts) -> httpcore2.ConnectionPool:
    """A pool of connections to those hosts and no others; it follows no redirects and knows no proxies."""
    return httpcore2.ConnectionPool(
        ssl_context=ssl.create_default_context(),
        network_backend=_Network(hosts),
        max_connections=16,
        max_keepalive_connections=0,
    )


def timeouts(idle_s: float) -> dict[str, dict[str, float]]:
    """The pool's `extensions` for one request."""
    return {"timeout": {"connect": _TIMEOUT_S, "read": idle_s, "write": idle_s, "pool": idle_s}}
