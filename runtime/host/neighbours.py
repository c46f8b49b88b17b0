"""Other daemons of crisp on this host: what two of them should not share is theirs by name alone.

Each holds a socket with an abstract name for each such thing (unix(7)): nobody has to clean up after one that was killed.
The names are those of one network namespace, as bridges and tables are.
"""

from __future__ import annotations

import errno
import socket
from typing import TYPE_CHECKING

import structlog

if TYPE_CHECKING:
    from collections.abc import Iterable

log = structlog.get_logger(__name__)

MAX_NAME = 107  # bytes of an abstract name


def claim(things: Iterable[str]) -> list[socket.socket]:
    """Hold each thing as long as these sockets are open; of what another daemon holds the log says that it is shared."""
    held = []
    for thing in things:
        ours = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
        try:
            ours.bind(f"\0crisp/{thing}".encode()[:MAX_NAME])
        except OSError as error:
            ours.close()
            if error.errno != errno.EADDRINUSE:
                raise
            log.warning("another crisp on this host uses the same: give each its own", shared=thing)
        else:
            held.append(ours)
    return held
