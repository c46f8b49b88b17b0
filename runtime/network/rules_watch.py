"""Hearing of it when somebody removes nftables rules (`nft flush ruleset`): the network is looked at, and mended, at once.

The kernel tells every change to a multicast group of netlink (NFNLGRP_NFTABLES). What is there to mend, and whether it is
ours at all, the look itself finds out.
"""

from __future__ import annotations

import asyncio
import errno
import socket
import struct
from typing import TYPE_CHECKING, Final

import structlog

if TYPE_CHECKING:
    from runtime.network.seam import PodNetwork

log = structlog.get_logger(__name__)

_NETLINK_NETFILTER: Final = 12
_GROUP: Final = 1 << 6
"""NFNLGRP_NFTABLES is the seventh."""
_REMOVALS: Final = frozenset((2, 5, 8, 11, 14))
"""The low byte of NFT_MSG_DELTABLE, DELCHAIN, DELRULE, DELSET and DELSETELEM (linux/netfilter/nf_tables.h)."""
_HEADER: Final = struct.Struct("=IHHII")
_READ: Final = 1 << 16

SETTLE_SECONDS: Final = 0.5
"""Between a notice and the look: who flushes the rules often loads others at once. Also between two looks."""


async def follow(network: PodNetwork) -> None:
    """Look at the network whenever rules were removed, for ever."""
    removed = asyncio.Event()
    try:
        notices = _open()
    except OSError as error:  # no nftables in this kernel: there is nothing to hear of
        log.debug("no notices of nftables", reason=error.strerror)
        return
    loop = asyncio.get_running_loop()
    loop.add_reader(notices.fileno(), lambda: removed.set() if _removals(notices) else None)
    try:
        while True:
            await removed.wait()
            await asyncio.sleep(SETTLE_SECONDS)
            removed.clear()
            readiness = await network.check()
            if not readiness.ready:
                log.warning("the pod network is not ready", reason=readiness.reason, error=readiness.message)
    finally:
        loop.remove_reader(notices.fileno())
        notices.close()


def _open() -> socket.socket:
    notices = socket.socket(
        socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK, _NETLINK_NETFILTER
    )
    try:
        notices.bind((0, _GROUP))
    except OSError:
        notices.close()
        raise
    return notices


def _removals(notices: socket.socket) -> bool:
    """Read what is there; whether something was removed, or notices were lost."""
    found = False
    while True:
        try:
            data = notices.recv(_READ)
        except BlockingIOError:
            return found
        except OSError as error:
            if error.errno != errno.ENOBUFS:
                raise
            found = True
            continue
        while len(data) >= _HEADER.size:
            length, kind, *_ = _HEADER.unpack_from(data)
            found = found or kind & 0xFF in _REMOVALS
            data = data[max(length + 3 & ~3, _HEADER.size) :]
