"""The client against the server."""

from __future__ import annotations

import asyncio
import os
import pty
import signal
import subprocess
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path

import pytest

from proto.errors import Code, CrispError
from runtime.streaming import client
from runtime.streaming.config import StreamingConfig
from runtime.streaming.remote_command import StreamOptions
from runtime.streaming.server import StreamingServer
from tests.unit.streaming.local_processes import LocalBackend
from tests.unit.streaming.spdy_client import SECONDS
from tests.unit.streaming.test_portforward import closed_port, port

__all__ = ["closed_port", "port"]


class Pipes:
    """This program's streams, for once as pipes."""

    def __init__(self) -> None:
        self.stdin, self.to_stdin = os.pipe()
        self.from_stdout, self.stdout = os.pipe()
        self.from_stderr, self.stderr = os.pipe()

    def output(self) -> tuple[bytes, bytes]:
        os.close(self.stdout)
        os.close(self.stderr)
        with open(self.from_stdout, "rb") as out, open(self.from_stderr, "rb") as err:
            return out.read(), err.read()

    def fds(self) -> dict[str, int]:
        return {"stdin": self.stdin, "stdout": self.stdout, "stderr": self.stderr}


@pytest.fixture
def pipes() -> Pipes:
    return Pipes()


async def run(server: StreamingServer, pipes: Pipes, *cmd: str, options: StreamOptions) -> int:
    address = server.exec_url("c", cmd, tty=options.tty, stdin=options.stdin, stdout=options.stdout, stderr=options.stderr)
    async with asyncio.timeout(SECONDS):
        return await client.run_command(address, options, **pipes.fds())


async def test_output_and_exit_code(server: StreamingServer, pipes: Pipes) -> None:
    options = StreamOptions(tty=False, stdin=False, stdout=True, stderr=True)
    assert await run(server, pipes, "sh", "-c", "echo out; echo err >&2; exit 7", options=options) == 7
    assert pipes.output() == (b"out\n", b"err\n")


@pytest.fixture
async def tls_server(backend: LocalBackend, tmp_path: Path) -> AsyncIterator[StreamingServer]:
    """With a certificate of a cluster: no authority of this machine knows it, and it is for another name."""
    paths = {"tls_certificate": str(tmp_path / "cert.pem"), "tls_key": str(tmp_path / "key.pem")}
    command = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 1 -subj /CN=node"
    made = subprocess.run(
        [*command.split(), "-keyout", paths["tls_key"], "-out", paths["tls_certificate"]], capture_output=True
    )
    if made.returncode != 0:
        pytest.skip("no openssl program to make a certificate with")
    server = StreamingServer(StreamingConfig(**paths), backend)
    await server.start()
    yield server
    await server.stop()


async def test_tls_with_the_certificate_that_the_daemon_has_told_of(
    tls_server: StreamingServer, pipes: Pipes, port: int
) -> None:
    def address() -> str:
        return tls_server.exec_url("c", ["echo", "hello"], tty=False, stdin=False, stdout=True, stderr=False)

    options = StreamOptions(False, False, True, False)
    told = tls_server.certificate
    assert await client.run_command(address(), options, certificate=told, **pipes.fds()) == 0
    for trusted, reason in (("", "certificate verify failed"), ("0" * 64, "shows another certificate than the daemon's")):
        with pytest.raises(CrispError, match=reason):
            await client.run_command(address(), options, certificate=trusted, **pipes.fds())
    assert pipes.output() == (b"hello\n", b"")
    listening: asyncio.Future[int] = asyncio.get_running_loop().create_future()
    url = tls_server.port_forward_url("p")
    task = asyncio.create_task(
        client.forward_ports(url, [(0, port)], certificate=told, on_listening=lambda local, _: listening.set_result(local))
    )
    async with asyncio.timeout(SECONDS):
        reader, writer = await asyncio.open_connection("127.0.0.1", await listening)
        writer.write(b"hi")
        assert await reader.readexactly(2) == b"hi"
    writer.close()
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task


async def test_input_until_its_end(server: StreamingServer, pipes: Pipes) -> None:
    os.write(pipes.to_stdin, b"hello")
    os.close(pipes.to_stdin)
    assert await run(server, pipes, "cat", options=StreamOptions(False, True, True, False)) == 0
    assert pipes.output() == (b"hello", b"")


async def test_a_terminal_is_raw_for_the_time_and_its_size_followed(server: StreamingServer, pipes: Pipes) -> None:
    master, slave = pty.openpty()
    os.close(pipes.stdin)
    pipes.stdin = slave
    import termios  # noqa: PLC0415

    termios.tcsetwinsize(slave, (33, 101))
    before = termios.tcgetattr(slave)
    script = """stty -echo
        until [ "$(stty size)" = '33 101' ]; do :; done; echo ready
        until [ "$(stty size)" = '40 120' ]; do :; done"""
    task = asyncio.create_task(run(server, pipes, "sh", "-c", script, options=StreamOptions(True, True, True, False)))
    assert await asyncio.to_thread(os.read, pipes.from_stdout, 100) == b"ready\r\n"
    assert termios.tcgetattr(slave) != before
    termios.tcsetwinsize(slave, (40, 120))
    os.kill(os.getpid(), signal.SIGWINCH)
    assert await task == 0
    assert termios.tcgetattr(slave) == before
    os.close(master)


async def test_failures_are_told(server: StreamingServer, pipes: Pipes) -> None:
    address = server.exec_url("missing", ["x"], tty=False, stdin=False, stdout=True, stderr=False)
    options = StreamOptions(False, False, True, False)
    with pytest.raises(CrispError, match="container missing does not exist"):
        await client.run_command(address, options, **pipes.fds())
    with pytest.raises(CrispError, match="the token is unknown") as caught:
        await client.run_command(address, options, **pipes.fds())
    assert caught.value.code is Code.NOT_FOUND
    await server.stop()
    with pytest.raises(CrispError, match="cannot connect to 127"):
        await client.run_command(address, options, **pipes.fds())


async def test_a_lost_connection(server: StreamingServer, backend: LocalBackend, pipes: Pipes) -> None:
    task = asyncio.create_task(run(server, pipes, "sleep", "1000", options=StreamOptions(False, False, True, False)))
    async with asyncio.timeout(SECONDS):
        while not backend.processes:
            await asyncio.sleep(0.01)
        await server.stop()
        with pytest.raises(CrispError, match="the connection was lost"):
            await task


@pytest.fixture
async def errors() -> list[str]:
    return []


@pytest.fixture
async def forwarded(
    server: StreamingServer, port: int, closed_port: int, errors: list[str]
) -> AsyncIterator[dict[int, int]]:
    """Local ports by port in the pod."""
    listening: dict[int, int] = {}
    ready = asyncio.Event()

    def on_listening(local: int, remote: int) -> None:
        listening[remote] = local
        if len(listening) == 2:
            ready.set()

    task = asyncio.create_task(
        client.forward_ports(
            server.port_forward_url("p"), [(0, port), (0, closed_port)], on_listening=on_listening, on_error=errors.append
        )
    )
    async with asyncio.timeout(SECONDS):
        await ready.wait()
    yield listening
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task


async def test_port_forward(forwarded: dict[int, int], port: int, closed_port: int, errors: list[str]) -> None:
    async def connection(number: int) -> bytes:
        reader, writer = await asyncio.open_connection("127.0.0.1", forwarded[number])
        with suppress(ConnectionError):
            writer.write(b"hello")
            writer.write_eof()
            received = await reader.read()
        writer.close()
        return received

    async with asyncio.timeout(SECONDS):
        assert await asyncio.gather(*(connection(port) for _ in range(5))) == [b"hello|end"] * 5
        assert await connection(closed_port) == b""
        while not errors:
            await asyncio.sleep(0.01)
        assert await connection(port) == b"hello|end", "the session goes on"
    assert f"error forwarding port {closed_port}" in errors[0]
