"""Clients that are broken or mean: each is closed, and nothing else notices."""

from __future__ import annotations

import asyncio
import logging
import os
import resource
import ssl
import struct
import subprocess
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import structlog

from proto.errors import Code, CrispError
from runtime.streaming import connection
from runtime.streaming import server as module
from runtime.streaming.config import StreamingConfig
from runtime.streaming.server import StreamingServer
from tests.unit.streaming.local_processes import LocalBackend
from tests.unit.streaming.spdy_client import SECONDS, Refused, SpdyClient, exit_code, status_of

MIB = 1024 * 1024


def url(server: StreamingServer, *cmd: str, stdin: bool = False) -> str:
    return server.exec_url("c", cmd, tty=False, stdin=stdin, stdout=True, stderr=False)


def certificate(directory: Path) -> tuple[dict[str, Any], ssl.SSLContext]:
    """The server's options, and what a client needs to trust it."""
    path, key = str(directory / "cert.pem"), str(directory / "key.pem")
    made = subprocess.run(
        "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 1 -subj /CN=127.0.0.1 "
        f"-addext subjectAltName=IP:127.0.0.1 -keyout {key} -out {path}".split(),
        capture_output=True,
    )
    if made.returncode != 0:
        pytest.skip("no openssl program to make a certificate with")
    return {"tls_certificate": path, "tls_key": key}, ssl.create_default_context(cafile=path)


@pytest.fixture
async def bystander(server: StreamingServer) -> AsyncIterator[None]:
    """A session that was there before, works during the test, and after it."""
    async with await SpdyClient.connect(url(server, "cat", stdin=True)) as client:
        streams = await client.command("error", "stdin", "stdout")
        await streams["stdin"].write(b"before ")
        yield
        await streams["stdin"].write(b"after", end=True)
        assert await streams["stdout"].all() == b"before after"
        assert exit_code(await status_of(streams["error"])) == 0


async def raw(server: StreamingServer, data: bytes) -> bytes:
    """Send bytes to the server's port; returns all that comes until it closes."""
    parts = urlsplit(url(server, "true"))
    reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
    writer.write(data)
    async with asyncio.timeout(SECONDS):
        received = b""
        with suppress(ConnectionError):
            received = await reader.read()
    writer.close()
    return received


@pytest.mark.usefixtures("bystander")
@pytest.mark.parametrize(
    "data",
    [
        b"\0" * 100,
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc",
        b"GET /exec/" + b"x" * 100_000,
        os.urandom(5000),
        b"\r\n" * 10_000,
    ],
    ids=["zeros", "tls", "long", "random", "lines"],
)
async def test_garbage_instead_of_a_request(server: StreamingServer, data: bytes) -> None:
    answer = await raw(server, data + b"\r\n\r\n")
    assert answer == b"" or answer.startswith(b"HTTP/1.1 4")


async def test_a_token_opens_one_session_of_its_kind(server: StreamingServer) -> None:
    address = url(server, "true")
    async with await SpdyClient.connect(address) as client:
        await client.command("error", "stdout")
    for bad in (address, address.replace("exec", "attach"), url(server, "true").replace("exec", "attach"), address + "x"):
        with pytest.raises(Refused) as caught:
            await SpdyClient.connect(bad)
        assert caught.value.status == 404


async def test_urls_are_absolute_and_validated(server: StreamingServer) -> None:
    parts = urlsplit(url(server, "true"))
    assert (parts.scheme, parts.hostname) == ("http", "127.0.0.1")
    for tty, stderr, stdout in ((True, True, True), (False, False, False)):
        with pytest.raises(CrispError) as caught:
            server.exec_url("c", ["x"], tty=tty, stdin=False, stdout=stdout, stderr=stderr)
        assert caught.value.code is Code.INVALID_ARGUMENT


@pytest.mark.usefixtures("bystander")
async def test_a_silent_client_is_let_go(server: StreamingServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "REQUEST_SECONDS", 0.1)
    assert (await raw(server, b"GET /exec/")).startswith(b"HTTP/1.1 408 ")


@pytest.mark.usefixtures("bystander")
@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
async def test_idle_connections_keep_nobody_out(
    backend: LocalBackend, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, tls: bool
) -> None:
    """Of a local user, who needs no token to connect; the oldest that has said nothing goes first."""
    monkeypatch.setattr(module, "MAX_STRANGERS", 20)
    monkeypatch.setattr(module, "MAX_CONNECTIONS", 40)
    options, context = {}, None
    if tls:
        options, context = certificate(tmp_path)
    server = StreamingServer(StreamingConfig(**options), backend)
    await server.start()
    idle = []
    try:
        parts = urlsplit(url(server, "true"))
        async with await SpdyClient.connect(url(server, "cat", stdin=True), ssl=context) as session:
            streams = await session.command("error", "stdin", "stdout")
            with structlog.testing.capture_logs() as logs:
                idle = [await asyncio.open_connection(parts.hostname, parts.port) for _ in range(100)]
                async with await SpdyClient.connect(url(server, "true"), ssl=context) as client:
                    streams_of_client = await client.command("error", "stdout")
                    assert exit_code(await status_of(streams_of_client["error"])) == 0
            lines = [line for line in logs if "without a request" in line["event"]]
            assert [line["limit"] for line in lines] == [20]
            async with asyncio.timeout(SECONDS):
                for reader, _ in idle[:79]:
                    with suppress(ConnectionError):
                        assert await reader.read() == b""
            await streams["stdin"].write(b"on", end=True)
            assert await streams["stdout"].all() == b"on"
    finally:
        for _, writer in idle:
            writer.close()
        await server.stop()


async def test_who_has_said_something_outlasts_the_silent(server: StreamingServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_STRANGERS", 3)
    parts = urlsplit(url(server, "true"))
    talker_reader, talker = await asyncio.open_connection(parts.hostname, parts.port)
    talker.write(b"GET /exec/")
    await talker.drain()
    async with asyncio.timeout(SECONDS):
        while not any(not connection.silent for connection in server._strangers.values()):
            await asyncio.sleep(0)
    silent = [await asyncio.open_connection(parts.hostname, parts.port) for _ in range(5)]
    async with asyncio.timeout(SECONDS):
        with suppress(ConnectionError):
            assert await silent[0][0].read() == b""
    talker.write(b"unknown HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: SPDY/3.1\r\n\r\n")
    async with asyncio.timeout(SECONDS):
        assert (await talker_reader.read()).startswith(b"HTTP/1.1 404 ")
    for _, writer in [*silent, (talker_reader, talker)]:
        writer.close()


@pytest.mark.usefixtures("bystander")
@pytest.mark.parametrize(
    "bytes_after",
    [struct.pack("!II", 0x80030001, 0xFFFFFF), struct.pack("!II", 0, 5), b"\xff" * 64],
    ids=["long frame", "stream 0", "ones"],
)
async def test_a_violation_ends_the_session_and_its_process(
    server: StreamingServer, backend: LocalBackend, bytes_after: bytes
) -> None:
    async with await SpdyClient.connect(url(server, "sleep", "1000")) as client:
        await client.command("error", "stdout")
        client.writer.write(bytes_after)
        client.writer.write(struct.pack("!II", 0x80020001, 0) * 2)
        async with asyncio.timeout(SECONDS):
            await client.over.wait()
            await backend.processes[-1].closed.wait()


@pytest.mark.usefixtures("bystander")
async def test_asking_without_reading_is_cut_off(server: StreamingServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "MAX_UNSENT", 2 * connection.HIGH_WATER)  # soon reached, also on a busy machine
    async with await SpdyClient.connect(url(server, "sleep", "1000")) as client:
        await client.command("error", "stdout")
        client.stop_reading()
        pings = b"".join(struct.pack("!III", 0x80030006, 4, 2 * number + 1) for number in range(10_000))
        with suppress(ConnectionError, TimeoutError):
            async with asyncio.timeout(SECONDS):
                while not client.writer.transport.is_closing():
                    client.writer.write(pings)
                    await client.writer.drain()
        assert client.writer.transport.is_closing()


@pytest.mark.usefixtures("bystander")
async def test_a_gigabyte_grows_nothing(server: StreamingServer) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    async with await SpdyClient.connect(url(server, "head", "-c", str(1024 * MIB), "/dev/zero")) as client:
        streams = await client.command("error", "stdout")
        streams["stdout"].keep = False
        async with asyncio.timeout(120):
            await streams["stdout"].ended.wait()
        assert streams["stdout"].count == 1024 * MIB
        assert exit_code(await status_of(streams["error"])) == 0
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown < 32 * 1024, f"{grown} KiB"


async def test_idle_sessions_are_closed(backend: LocalBackend) -> None:
    server = StreamingServer(StreamingConfig(idle_timeout_seconds=0.2), backend)
    await server.start()
    try:
        async with await SpdyClient.connect(url(server, "sleep", "1000")) as client:
            await client.command("error", "stdout")
            async with asyncio.timeout(SECONDS):
                await client.over.wait()
                await backend.processes[0].closed.wait()
    finally:
        await server.stop()


async def test_tls(backend: LocalBackend, tmp_path: Path) -> None:
    options, context = certificate(tmp_path)
    server = StreamingServer(StreamingConfig(**options), backend)
    await server.start()
    try:
        address = url(server, "cat", stdin=True)
        assert address.startswith("https://127.0.0.1:")
        payload = os.urandom(4 * MIB)
        async with await SpdyClient.connect(address, ssl=context) as client:
            streams = await client.command("error", "stdin", "stdout")
            sender = asyncio.create_task(streams["stdin"].write(payload, end=True))
            assert await streams["stdout"].all() == payload
            await sender
            assert exit_code(await status_of(streams["error"])) == 0
    finally:
        await server.stop()


async def test_a_tls_client_that_stays_after_the_end_is_closed(
    backend: LocalBackend, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As without TLS, once it has had the time to read everything."""
    monkeypatch.setattr(connection, "LINGER_SECONDS", 0.5)
    options, context = certificate(tmp_path)
    server = StreamingServer(StreamingConfig(**options), backend)
    await server.start()
    try:
        async with await SpdyClient.connect(url(server, "head", "-c", "4000000", "/dev/zero"), ssl=context) as client:
            streams = await client.command("error", "stdout")
            assert len(await streams["stdout"].all()) == 4000000
            assert exit_code(await status_of(streams["error"])) == 0
            async with asyncio.timeout(SECONDS):
                await client.over.wait()
    finally:
        await server.stop()


async def test_an_address_in_use_is_a_clear_error(server: StreamingServer, backend: LocalBackend) -> None:
    port = urlsplit(url(server, "true")).port
    assert port is not None
    with pytest.raises(CrispError, match=f"cannot serve streams on 127.0.0.1 port {port}"):
        await StreamingServer(StreamingConfig(port=port), backend).start()


async def test_nothing_is_logged_as_an_error(server: StreamingServer, caplog: pytest.LogCaptureFixture) -> None:
    """Whatever clients do is their affair, and no error of the daemon's."""
    with caplog.at_level(logging.WARNING, logger="asyncio"):
        await raw(server, os.urandom(100) + b"\r\n\r\n")
        async with await SpdyClient.connect(url(server, "sleep", "1000")) as client:
            await client.command("error", "stdout")
        await server.stop()
    assert not caplog.records
