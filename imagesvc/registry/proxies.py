"""Which proxy a request goes through, as Go's net/http reads the environment (golang.org/x/net/http/httpproxy).

    HTTP_PROXY, HTTPS_PROXY    by the scheme of what is asked for; in lower case too. A proxy without scheme is http://
    NO_PROXY                   commas between: `*`, an address, a CIDR block, `example.com` (it and all below it),
                               `.example.com` or `*.example.com` (only what is below); each may end in `:port`

What is on this machine's loopback is never asked for through a proxy. Proxies are http, https and socks5 (or socks5h; names
are always resolved by the proxy).
"""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from urllib.parse import urlsplit

from imagesvc.registry.endpoint import is_loopback

SCHEMES = ("http", "https", "socks5", "socks5h")


def proxy_for(scheme: str, host: str, port: int, environment: Mapping[str, str]) -> str:
    """The proxy's URL, "" for none. ValueError where what is configured is no URL of a proxy."""
    if is_loopback(f"[{host}]" if ":" in host else host) or _excluded(host, port, _variable(environment, "NO_PROXY")):
        return ""
    value = _variable(environment, "HTTPS_PROXY" if scheme == "https" else "HTTP_PROXY")
    if not value:
        return ""
    url = value if value.partition("://")[0] in SCHEMES and "://" in value else f"http://{value}"
    parts = urlsplit(url)
    if not parts.hostname or parts.scheme not in SCHEMES or (parts.port or 1) < 1:
        raise ValueError(f"the environment names a proxy that is none: {parts._replace(netloc='…').geturl()[:100]}")
    return url


def _variable(environment: Mapping[str, str], name: str) -> str:
    return (environment.get(name) or environment.get(name.lower()) or "").strip()


def _excluded(host: str, port: int, rules: str) -> bool:
    return any(_matches(rule.strip().lower(), host.lower().rstrip("."), port) for rule in rules.split(",") if rule.strip())


def _matches(rule: str, host: str, port: int) -> bool:
    if rule == "*":
        return True
    address = _address(host)
    if "/" in rule:
        try:
            return address is not None and address in ipaddress.ip_network(rule, strict=False)
        except ValueError:
            return False
    name, wanted = _split_port(rule)
    if wanted and wanted != str(port):
        return False
    if address is not None:
        return _address(name) == address
    if name.startswith("*."):
        name = name[1:]
    if name.startswith("."):
        return host.endswith(name)
    return host == name or host.endswith(f".{name}")


def _split_port(rule: str) -> tuple[str, str]:
    """An address of IPv6 has a port only behind brackets."""
    if rule.startswith("["):
        name, _, rest = rule[1:].partition("]")
        return name, rest.removeprefix(":")
    if rule.count(":") == 1:
        name, _, port = rule.partition(":")
        return name, port
    return rule, ""


def _address(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return None
    return (address.ipv4_mapped or address) if isinstance(address, ipaddress.IPv6Address) else address
