"""A SPDY/3.1 client that shares nothing with the server's codec but the dictionary, and behaves as moby/spdystream does:
it sends without regard to windows, never sends WINDOW_UPDATE, and drops data that comes before a SYN_REPLY."""

from __future__ import annotations

import asyncio
import json
import struct
import zlib
from collections.abc import Sequence
from typing import Any, Self
from urllib.parse import urlsplit

from runtime.streaming.spdy_headers import DICTIONARY

SECONDS = 60.0


class Refused(Exception):
    def __init__(self, status: int, body: str) -> None:
        super().__init__(f"{status} {body}")
        self.status, self.body = status, body


class ClientStream:
    def __init__(self, client: SpdyClient, number: int) -> None:
        self._client = client
        self.number = number
        self.received = bytearray()
        self.count = 0
        self.keep = True
        self.replied = asyncio.Event()
        self.ended = asyncio.Event()
        self.reset_status: int | None = None
        self.changed = asyncio.Event()

    async def write(self, data: bytes, *, end: bool = False) -> None:
        for start in range(0, max(len(data), 1), 32768):
            chunk = data[start : start + 32768]
            last = end and start + 32768 >= len(data)
            self._client.writer.write(struct.pack("!II", self.number, (last << 24) | len(chunk)) + chunk)
            await self._client.writer.drain()

    async def end(self) -> None:
        await self.write(b"", end=True)

    def reset(self) -> None:
        self._client.control(3, struct.pack("!II", self.number, 5))

    async def all(self) -> bytes:
        async with asyncio.timeout(SECONDS):
            await self.ended.wait()
        return bytes(self.received)

    async def until(self, wanted: bytes) -> bytes:
        async with asyncio.timeout(SECONDS):
            while wanted not in self.received:
                self.changed.clear()
                assert not self.ended.is_set(), bytes(self.received)
                await self.changed.wait()
        return bytes(self.received)


class SpdyClient:
    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer
        self.streams: dict[int, ClientStream] = {}
        self._next = 1
        self._deflate = zlib.compressobj(zdict=DICTIONARY)
        self._inflate = zlib.decompressobj(zdict=DICTIONARY)
        self.pongs: list[int] = []
        self.window_updates: dict[int, int] = {}
        self.gone_away = asyncio.Event()
        self.over = asyncio.Event()
        self.changed = asyncio.Event()
        self._may_read = asyncio.Event()
        self._may_read.set()
        self.protocol = ""

    @classmethod
    async def connect(
        cls,
        url: str,
        protocols: Sequence[str] = ("v4.channel.k8s.io",),
        *,
        method: str = "POST",
        early: bytes = b"",
        **tls: Any,
    ) -> Self:
        parts = urlsplit(url)
        place = () if "sock" in tls else (parts.hostname, parts.port)
        reader, writer = await asyncio.open_connection(*place, **tls)
        lines = [f"{method} {parts.path} HTTP/1.1", f"Host: {parts.netloc}", "User-Agent: test"]
        lines += ["Content-Length: 0"] if method == "POST" else []
        lines += ["Connection: Upgrade", "Upgrade: SPDY/3.1"]
        lines += [f"X-Stream-Protocol-Version: {protocol}" for protocol in protocols]
        writer.write("\r\n".join(lines).encode() + b"\r\n\r\n" + early)
        async with asyncio.timeout(SECONDS):
            head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
        status = int(head[0].split()[1])
        headers = dict(line.lower().split(": ", 1) for line in head[1:] if line)
        if status != 101:
            body = (await reader.readexactly(int(headers["content-length"]))).decode()
            writer.close()
            raise Refused(status, body)
        assert headers["upgrade"] == "spdy/3.1" and headers["connection"] == "upgrade"
        client = cls(reader, writer)
        client.protocol = headers["x-stream-protocol-version"]
        client._task = asyncio.create_task(client._read())
        return client

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        self.writer.transport.abort()
        self._may_read.set()
        await self._task

    def stop_reading(self) -> None:
        self._may_read.clear()

    def go_on_reading(self) -> None:
        self._may_read.set()

    def control(self, kind: int, payload: bytes, flags: int = 0) -> None:
        self.writer.write(struct.pack("!II", 0x80030000 | kind, flags << 24 | len(payload)) + payload)

    def syn(self, headers: dict[str, str], flags: int = 0) -> ClientStream:
        number, self._next = self._next, self._next + 2
        self.streams[number] = stream = ClientStream(self, number)
        block = struct.pack("!I", len(headers))
        for text in (text for pair in headers.items() for text in pair):
            block += struct.pack("!I", len(text)) + text.encode()
        packed = self._deflate.compress(block) + self._deflate.flush(zlib.Z_SYNC_FLUSH)
        self.control(1, struct.pack("!IIH", number, 0, 0) + packed, flags)
        return stream

    async def open(self, **headers: str) -> ClientStream:
        stream = self.syn(headers)
        async with asyncio.timeout(SECONDS):
            await stream.replied.wait()
        if stream.reset_status is not None:
            raise Refused(stream.reset_status, "stream reset")
        return stream

    async def command(self, *kinds: str) -> dict[str, ClientStream]:
        return {kind: await self.open(streamtype=kind) for kind in kinds}

    def ping(self, number: int) -> None:
        self.control(6, struct.pack("!I", number))

    async def _read(self) -> None:
        try:
            while True:
                await self._may_read.wait()
                await self._frame()
                self.changed.set()
        except (asyncio.IncompleteReadError, ConnectionError, OSError):
            self.over.set()
            self.changed.set()
            for stream in self.streams.values():
                stream.ended.set()
                stream.changed.set()
            self.writer.close()

    async def _frame(self) -> None:
        first, second = struct.unpack("!II", await self.reader.readexactly(8))
        flags, payload = second >> 24, await self.reader.readexactly(second & 0xFFFFFF)
        if not first & 0x80000000:
            stream = self.streams[first]
            assert stream.replied.is_set(), "data before the reply: spdystream drops it"
            if stream.keep:
                stream.received += payload
            stream.count += len(payload)
            if flags & 1:
                stream.ended.set()
            stream.changed.set()
            return
        assert first >> 16 == 0x8003
        kind = first & 0xFFFF
        if kind == 2:
            self._inflate.decompress(payload[4:])
            self.streams[struct.unpack_from("!I", payload)[0]].replied.set()
        elif kind == 3:
            number, status = struct.unpack("!II", payload)
            if number in self.streams:
                stream = self.streams[number]
                stream.reset_status = status
                stream.replied.set()
                stream.ended.set()
                stream.changed.set()
        elif kind == 6:
            self.pongs += struct.unpack("!I", payload)
        elif kind == 7:
            self.gone_away.set()
        elif kind == 9:
            number, delta = struct.unpack("!II", payload)
            self.window_updates[number] = self.window_updates.get(number, 0) + delta


async def status_of(error: ClientStream) -> dict[str, Any]:
    """The v4 status at the end of a session."""
    status = json.loads(await error.all())
    assert isinstance(status, dict)
    return status


def exit_code(status: dict[str, Any]) -> int:
    if status["status"] == "Success":
        return 0
    [cause] = status["details"]["causes"]
    assert (status["reason"], cause["reason"]) == ("NonZeroExitCode", "ExitCode")
    return int(cause["message"])
