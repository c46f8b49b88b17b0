"""The pod network's nftables table as the kernel has it: its maps' elements changed, and it compared with what was loaded.

By pyroute2: its message classes know tables, rules and set elements, its socket sends a batch. What it has no notion of is
a map whose key and value are concatenations, so those are given as bytes (`HostPort.key`, `HostPort.data`).
"""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import struct
from collections.abc import Collection
from typing import Any, Final

from pyroute2.netlink import (
    NETLINK_NETFILTER,
    NLM_F_ACK,
    NLM_F_CREATE,
    NLM_F_DUMP,
    NLM_F_EXCL,
    NLM_F_REQUEST,
    NLMSG_ERROR,
)
from pyroute2.netlink.exceptions import NetlinkError
from pyroute2.netlink.nfnetlink import NFNL_SUBSYS_NFTABLES, nfgen_msg
from pyroute2.netlink.nfnetlink.nftsocket import (
    NFPROTO_BRIDGE,
    NFPROTO_INET,
    NFT_MSG_DELSETELEM,
    NFT_MSG_DELTABLE,
    NFT_MSG_GETGEN,
    NFT_MSG_GETRULE,
    NFT_MSG_GETSETELEM,
    NFT_MSG_GETTABLE,
    NFT_MSG_NEWSETELEM,
    AsyncNFTSocket,
    nft_rule_msg,
    nft_set_elem_list_msg,
    nft_table_msg,
)

from runtime.network.netlink import messages
from runtime.network.nftables import MAPS, HostPort

NFNL_MSG_BATCH_BEGIN, NFNL_MSG_BATCH_END = 0x10, 0x11

ANSWER_SECONDS: Final = 10.0
"""A batch that the kernel refuses as such, for want of memory, is answered in a way that pyroute2 does not wait for."""


class Table:
    """The table. For the thread that uses it first."""

    def __init__(self, name: str) -> None:
        self._socket = AsyncNFTSocket(nfgen_family=NFPROTO_INET)
        self._name = name

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()

    async def get(self, message: Any, kind: int, flags: int = 0, family: int = NFPROTO_INET) -> list[Any]:
        """The answers to a request for anything that nftables has, of any table."""
        request = _typed(message, kind, family, 0)
        replies = await self._socket.nlm_request(request, request["header"]["type"], NLM_F_REQUEST | flags)
        return [reply async for reply in replies]

    @staticmethod
    def generation() -> int:
        """A number that rises with every change that anybody makes to any table. Blocks.

        Asked at every pod's start, and so in bytes. Raises OSError.
        """
        request = struct.pack("=IHHIIBBH", 20, NFNL_SUBSYS_NFTABLES << 8 | NFT_MSG_GETGEN, NLM_F_REQUEST, 1, 0, 0, 0, 0)
        with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, NETLINK_NETFILTER) as netlink:
            netlink.settimeout(ANSWER_SECONDS)
            netlink.send(request)
            return generation_of(netlink.recv(4096))

    async def handle(self) -> int | None:
        """The kernel's number for this table, another one after it was made anew; None if there is no such table."""
        try:
            [reply] = await self.get(_with(nft_table_msg(), NFTA_TABLE_NAME=self._name), NFT_MSG_GETTABLE)
        except NetlinkError as error:
            if error.code == errno.ENOENT:
                return None
            raise
        return int(reply.get_attr("NFTA_TABLE_HANDLE"))

    async def rule_count(self) -> int:
        """How many rules the table has."""
        return len(await self.get(_with(nft_rule_msg(), NFTA_RULE_TABLE=self._name), NFT_MSG_GETRULE, NLM_F_DUMP))

    async def elements(self) -> set[tuple[str, bytes, bytes]]:
        """Map, key and value of everything in the maps."""
        return {(name, *element) for name in MAPS for element in await self._elements(name)}

    async def _elements(self, name: str) -> list[tuple[bytes, bytes]]:
        found = []
        for message in await self.get(self._list_of(name), NFT_MSG_GETSETELEM, NLM_F_DUMP):
            for element in message.get_attr("NFTA_SET_ELEM_LIST_ELEMENTS") or ():
                parts = (element.get_attr(f"NFTA_SET_ELEM_{part}") for part in ("KEY", "DATA"))
                key, data = (bytes(part.get_attr("NFTA_DATA_VALUE")) for part in parts)
                found.append((key, data))
        return found

    def _list_of(self, name: str) -> Any:
        return _with(nft_set_elem_list_msg(), NFTA_SET_ELEM_LIST_TABLE=self._name, NFTA_SET_ELEM_LIST_SET=name)

    async def add(self, ports: Collection[HostPort]) -> None:
        """Add map elements, all or none. Raises NetlinkError: ENOENT if the table is gone, EEXIST if a port is taken."""
        await self._change(NFT_MSG_NEWSETELEM, NLM_F_CREATE | NLM_F_EXCL, ports)

    async def remove(self, ports: Collection[HostPort]) -> None:
        """Remove map elements, all or none. Raises NetlinkError: ENOENT if one of them is not there."""
        await self._change(NFT_MSG_DELSETELEM, 0, ports)

    async def _change(self, kind: int, flags: int, ports: Collection[HostPort]) -> None:
        changes = []
        for name in MAPS:
            elements = [_element(port) for port in ports if port.map == name]
            if elements:
                message = self._list_of(name)
                message["attrs"].append(["NFTA_SET_ELEM_LIST_ELEMENTS", elements])
                changes.append(_typed(message, kind, NFPROTO_INET, flags))
        if changes:
            await self._transaction(changes)

    async def delete(self) -> None:
        """Remove the table and its namesake of the family bridge; success if there is none."""
        for family in (NFPROTO_INET, NFPROTO_BRIDGE):
            message = _with(nft_table_msg(), NFTA_TABLE_NAME=self._name)
            try:
                await self._transaction([_typed(message, NFT_MSG_DELTABLE, family, 0)])
            except NetlinkError as error:
                if error.code not in (errno.ENOENT, errno.EAFNOSUPPORT, errno.EOPNOTSUPP):
                    raise

    async def _transaction(self, messages: list[Any]) -> None:
        """Have messages carried out as a whole or not at all. Raises NetlinkError, after which nothing has changed."""
        batch = [_bracket(NFNL_MSG_BATCH_BEGIN), *messages, _bracket(NFNL_MSG_BATCH_END)]
        async with asyncio.timeout(ANSWER_SECONDS):
            async for _ in self._socket.nlm_request_batch(batch):
                continue


def generation_of(reply: bytes) -> int:
    """What an answer to GETGEN says. Raises OSError."""
    message = next(messages(reply))
    if message.kind == NLMSG_ERROR:
        raise OSError(message.error, os.strerror(message.error))
    (found,) = struct.unpack_from(">I", message.payload, 8)  # NFTA_GEN_ID, the first of its attributes since there are any
    return int(found)


def _with(message: Any, **attributes: object) -> Any:
    message["attrs"] = [[name, value] for name, value in attributes.items()]
    return message


def _typed(message: Any, kind: int, family: int, flags: int) -> Any:
    message["header"]["type"] = (NFNL_SUBSYS_NFTABLES << 8) | kind
    message["header"]["flags"] = NLM_F_REQUEST | NLM_F_ACK | flags
    message["nfgen_family"] = family
    return message


def _bracket(kind: int) -> Any:
    message = nfgen_msg()
    message["header"]["type"] = kind
    message["header"]["flags"] = NLM_F_REQUEST
    message["res_id"] = NFNL_SUBSYS_NFTABLES
    return message


def _element(port: HostPort) -> dict[str, Any]:
    parts = (("NFTA_SET_ELEM_KEY", port.key()), ("NFTA_SET_ELEM_DATA", port.data()))
    return {"attrs": [[name, {"attrs": [["NFTA_DATA_VALUE", value]]}] for name, value in parts]}
