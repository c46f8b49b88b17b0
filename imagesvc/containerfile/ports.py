"""Ports of EXPOSE: `N`, `N-M`, each with `/tcp`, `/udp` or `/sctp`."""

from __future__ import annotations

import re

from imagesvc.containerfile.instructions import Expose

_PORT = re.compile(r"([0-9]{1,5})(?:-([0-9]{1,5}))?(?:/([A-Za-z]+))?")


def parse_port(step: Expose, text: str) -> list[str]:
    """Each port that a text means, as `N/protocol`."""
    match = _PORT.fullmatch(text)
    protocol = (match[3] or "tcp").lower() if match else ""
    if match is None or protocol not in ("tcp", "udp", "sctp"):
        raise step.error(f"{text!r} is no port: it is to be N or N-M, with /tcp, /udp or /sctp after it or nothing")
    first = int(match[1])
    last = int(match[2] or first)
    if not 1 <= first <= last <= 65535:
        raise step.error(f"{text!r}: ports are 1 to 65535, and the first of a range comes first")
    return [f"{port}/{protocol}" for port in range(first, last + 1)]
