"""Ports of this node that lead to what `crisp run` runs: those that are named, and free ones."""

from __future__ import annotations

import re
import socket
from typing import TYPE_CHECKING, Any, Final

from runtime.cli.output import fail

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from proto import api_pb2 as cri

_PROTOCOLS: Final = {"tcp": socket.SOCK_STREAM, "udp": socket.SOCK_DGRAM, "sctp": socket.SOCK_STREAM}
_chosen: Final = set[tuple[str, int]]()
"""Free ports that this command has found already: the kernel knows nothing of what they are for."""
_FORM: Final = re.compile(
    r"(?:(?:(\[[^]]*\]|[^:]*):)?(\d{1,5})?(?:(?<=\d)-(\d{1,5}))?:)?(\d{1,5})(?:-(\d{1,5}))?(?:/(\w+))?", re.ASCII
)


def published(text: str) -> Iterable[cri.PortMapping]:
    """[[ADDRESS:][HOST]:]INNER[/PROTOCOL]; HOST and INNER may be ranges of one length. Without HOST a free one."""
    from proto import api_pb2 as cri  # noqa: PLC0415  --help needs no protobuf

    form = _FORM.fullmatch(text)
    protocol = ((form[6] if form else "") or "tcp").lower()
    if form is None or protocol not in _PROTOCOLS:
        fail(f"--publish {text}: not of the form [[ADDRESS:]PORT:]PORT[/tcp|udp|sctp]", 2)
    address, inner = (form[1] or "").strip("[]"), range(int(form[4]), int(form[5] or form[4]) + 1)
    hosts = range(int(form[2]), int(form[3] or form[2]) + 1) if form[2] else None
    ends = [*inner[:1], *inner[-1:], *(() if hosts is None else (*hosts[:1], *hosts[-1:]))]
    if not inner or not set(ends) <= set(range(1, 65536)) or (hosts is not None and len(hosts) != len(inner)):
        fail(f"--publish {text}: ports are numbers from 1 to 65535, and ranges of one length", 2)
    for index, port in enumerate(inner):
        yield cri.PortMapping(
            protocol=protocol.upper(),
            container_port=port,
            host_port=hosts[index] if hosts is not None else _free(text, address, protocol),
            host_ip=address,
        )


def exposed(
    document: Mapping[str, Any], named: Iterable[cri.PortMapping], more: Iterable[str] = ()
) -> Iterable[cri.PortMapping]:
    """A free port for each that an image's configuration document exposes, and `more`, but for those that are `named`."""
    from proto import api_pb2 as cri  # noqa: PLC0415

    there = {(mapping.container_port, cri.Protocol.Name(mapping.protocol).lower()) for mapping in named}
    for entry in dict.fromkeys((*(document.get("config", {}).get("ExposedPorts") or ()), *more)):
        port, _, protocol = str(entry).partition("/")
        if port.isdecimal() and (int(port), protocol or "tcp") not in there:
            yield from published(f"{port}/{protocol or 'tcp'}")


def _free(text: str, address: str, protocol: str) -> int:
    """A port that nothing on this node listens on, as the kernel chooses it."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    try:
        while True:
            with socket.socket(family, _PROTOCOLS[protocol]) as chosen:
                chosen.bind((address, 0))
                port = int(chosen.getsockname()[1])
            if (protocol, port) not in _chosen:
                _chosen.add((protocol, port))
                return port
    except OSError as error:
        fail(f"--publish {text}: {error.strerror}", 2)
