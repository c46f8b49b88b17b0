"""TCP through a SOCKS5 proxy (RFC 1928, RFC 1929), for aiohttp. Names are resolved by the proxy."""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from typing import Any
from urllib.parse import unquote, urlsplit

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult

_VERSION, _NO_AUTHENTICATION, _PASSWORD, _CONNECT = 5, 0, 2, 1
_ADDRESS_BYTES = {1: 4, 4: 16}
_REPLIES = {2: "not allowed", 3: "network unreachable", 4: "host unreachable", 5: "connection refused", 6: "expired"}


class _Nowhere(AbstractResolver):
    """The proxy looks names up, so nothing is looked up here."""

    async def resolve(self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET) -> list[ResolveResult]:
        return [ResolveResult(hostname=host, host="0.0.0.0", port=port, family=family, proto=0, flags=socket.AI_NUMERICHOST)]

    async def close(self) -> None:
        return


class SocksConnector(aiohttp.TCPConnector):
    """Connections of a session that all go through one proxy."""

    def __init__(self, proxy: str, **options: Any) -> None:
        super().__init__(resolver=_Nowhere(), use_dns_cache=False, **options)
        self._proxy = urlsplit(proxy)

    async def _wrap_create_connection(self, *args: Any, req: Any, timeout: Any, **options: Any) -> Any:
        """aiohttp's own step from addresses to a transport; the socket is the one to the proxy."""
        options.pop("addr_infos", None)
        options.pop("client_error", None)
        loop = asyncio.get_running_loop()
        url = req.url
        try:
            async with asyncio.timeout(timeout.sock_connect):
                connected = await self._connect(loop, url.raw_host, url.port)
                return await loop.create_connection(*args, **options, sock=connected)
        except OSError as error:
            raise aiohttp.ClientConnectionError(f"SOCKS proxy {self._proxy.hostname}: {error}") from error

    async def _connect(self, loop: asyncio.AbstractEventLoop, host: str, port: int) -> socket.socket:
        proxy = self._proxy
        addresses = await loop.getaddrinfo(proxy.hostname, proxy.port or 1080, type=socket.SOCK_STREAM)
        family, kind, protocol, _name, address = addresses[0]
        sock = socket.socket(family, kind, protocol)
        sock.setblocking(False)
        try:
            await loop.sock_connect(sock, address)
            await self._greet(loop, sock)
            await loop.sock_sendall(sock, bytes((_VERSION, _CONNECT, 0)) + _address(host) + port.to_bytes(2, "big"))
            _version, reply, _reserved, form = await _exactly(loop, sock, 4)
            if reply:
                raise OSError(_REPLIES.get(reply, f"failure {reply}"))
            length = _ADDRESS_BYTES.get(form) or (await _exactly(loop, sock, 1))[0]
            await _exactly(loop, sock, length + 2)
        except BaseException:
            sock.close()
            raise
        return sock

    async def _greet(self, loop: asyncio.AbstractEventLoop, sock: socket.socket) -> None:
        method = _PASSWORD if self._proxy.username else _NO_AUTHENTICATION
        await loop.sock_sendall(sock, bytes((_VERSION, 1, method)))
        version, chosen = await _exactly(loop, sock, 2)
        if version != _VERSION or chosen != method:
            raise OSError("it does not take this way to say who asks")
        if method == _PASSWORD:
            user, password = (unquote(part or "").encode()[:255] for part in (self._proxy.username, self._proxy.password))
            await loop.sock_sendall(sock, bytes((1, len(user))) + user + bytes((len(password),)) + password)
            if (await _exactly(loop, sock, 2))[1]:
                raise OSError("user and password are refused")


def _address(host: str) -> bytes:
    try:
        address = ipaddress.ip_address(host.strip("[]"))
    except ValueError:
        name = host.encode("ascii")
        if len(name) > 255:
            raise OSError("the host's name is too long") from None
        return bytes((3, len(name))) + name
    return bytes((1 if address.version == 4 else 4,)) + address.packed


async def _exactly(loop: asyncio.AbstractEventLoop, sock: socket.socket, count: int) -> bytes:
    data = b""
    while len(data) < count:
        part = await loop.sock_recv(sock, count - len(data))
        if not part:
            raise OSError("it has closed the connection")
        data += part
    return data
