"""A pod's resolv.conf (resolv.conf(5))."""

from __future__ import annotations

from collections.abc import Sequence
from ipaddress import ip_address
from typing import Final

HOST_RESOLV_CONF: Final = "/etc/resolv.conf"
SYSTEMD_RESOLV_CONF: Final = "/run/systemd/resolve/resolv.conf"
"""Where systemd-resolved lists the servers that its stub on 127.0.0.53 asks."""


def resolv_conf(*, servers: Sequence[str], searches: Sequence[str], options: Sequence[str], own_network: bool) -> str:
    """The file for a pod with this CRI DNSConfig; the host's own where the config is empty.

    With a network of its own, a pod cannot reach resolvers on the host's loopback: those are left out, and if
    that leaves none, systemd-resolved's upstream servers stand in.
    """
    if servers or searches or options:
        lines = [f"search {' '.join(searches)}"] if searches else []
        lines += [f"nameserver {server}" for server in servers]
        lines += [f"options {' '.join(options)}"] if options else []
        return "".join(f"{line}\n" for line in lines)
    host = _read(HOST_RESOLV_CONF)
    if not own_network:
        return host
    reachable = without_loopback(host)
    if _has_server(host) and not _has_server(reachable):
        reachable = without_loopback(_read(SYSTEMD_RESOLV_CONF)) or reachable
    return reachable


def without_loopback(text: str) -> str:
    """A resolv.conf without the name servers on loopback addresses; all other lines stay as they are."""
    return "".join(line for line in text.splitlines(keepends=True) if not _is_loopback(line))


def _server(line: str) -> str | None:
    words = line.split()
    return words[1] if len(words) >= 2 and words[0] == "nameserver" else None


def _is_loopback(line: str) -> bool:
    server = _server(line)
    if server is None:
        return False
    try:
        return ip_address(server.partition("%")[0]).is_loopback
    except ValueError:
        return False


def _has_server(text: str) -> bool:
    return any(_server(line) for line in text.splitlines())


def _read(path: str) -> str:
    try:
        with open(path, encoding="utf-8", errors="surrogateescape") as file:
            return file.read()
    except OSError:
        return ""
