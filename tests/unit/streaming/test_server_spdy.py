"""The whole server over SPDY, with a client of the tests' own and local processes."""

from __future__ import annotations

import asyncio
import hashlib
import os
import signal
import sys

import pytest

from runtime.streaming.server import StreamingServer
from runtime.streaming.session import STREAM_BYTES
from tests.unit.streaming.local_processes import LocalBackend
from tests.unit.streaming.spdy_client import SECONDS, Refused, SpdyClient, exit_code, status_of

MIB = 1024 * 1024
FD_COUNT = "/proc/self/fd"


def url(server: StreamingServer, *cmd: str, tty: bool = False, stdin: bool = False, stderr: bool = True) -> str:
    return server.exec_url("c", cmd, tty=tty, stdin=stdin, stdout=True, stderr=stderr and not tty)


async def gone(pid: int) -> None:
    """Return when a process has ended, though perhaps nobody has reaped it yet."""
    async with asyncio.timeout(SECONDS):
        while os.path.exists(f"/proc/{pid}"):
            with open(f"/proc/{pid}/stat") as file:
                if file.read().rpartition(")")[2].split()[0] == "Z":
                    return
            await asyncio.sleep(0.01)


@pytest.mark.parametrize("method", ["GET", "POST"])
async def test_output_and_success(server: StreamingServer, method: str) -> None:
    address = url(server, "sh", "-c", "echo out; echo err >&2")
    async with await SpdyClient.connect(address, method=method) as client:
        streams = await client.command("error", "stdout", "stderr")
        assert await streams["stdout"].all() == b"out\n"
        assert await streams["stderr"].all() == b"err\n"
        assert await status_of(streams["error"]) == {"metadata": {}, "status": "Success"}
        async with asyncio.timeout(SECONDS):
            await client.gone_away.wait()


@pytest.mark.parametrize(("script", "code"), [("exit 0", 0), ("exit 7", 7), ("kill -TERM $$", 143), ("kill -9 $$", 137)])
async def test_exit_codes(server: StreamingServer, script: str, code: int) -> None:
    async with await SpdyClient.connect(url(server, "sh", "-c", script)) as client:
        streams = await client.command("error", "stdout", "stderr")
        assert exit_code(await status_of(streams["error"])) == code


@pytest.mark.parametrize(
    ("offered", "chosen"),
    [
        (["v5.channel.k8s.io", "v4.channel.k8s.io", "v3.channel.k8s.io"], "v4.channel.k8s.io"),
        (["v3.channel.k8s.io, v2.channel.k8s.io"], "v3.channel.k8s.io"),
        (["v2.channel.k8s.io"], "v2.channel.k8s.io"),
        (["channel.k8s.io"], "channel.k8s.io"),
    ],
)
async def test_protocol_versions(server: StreamingServer, offered: list[str], chosen: str) -> None:
    async with await SpdyClient.connect(url(server, "sh", "-c", "echo x; exit 7"), offered) as client:
        assert client.protocol == chosen
        streams = await client.command("error", "stdout", "stderr")
        assert await streams["stdout"].all() == b"x\n"
        message = await streams["error"].all()
        if chosen.startswith("v4"):
            assert b"NonZeroExitCode" in message
        else:
            assert message == b"command terminated with non-zero exit code: exit status 7"


async def test_success_before_v4_is_silence(server: StreamingServer) -> None:
    async with await SpdyClient.connect(url(server, "true"), ["v3.channel.k8s.io"]) as client:
        streams = await client.command("error", "stdout", "stderr")
        assert await streams["error"].all() == b""


async def test_no_common_protocol(server: StreamingServer) -> None:
    with pytest.raises(Refused, match="client supports") as caught:
        await SpdyClient.connect(url(server, "true"), ["v9.channel.k8s.io"])
    assert caught.value.status == 403
    with pytest.raises(Refused) as caught:
        await SpdyClient.connect(url(server, "true"), [])
    assert caught.value.status == 400


async def test_stdin_and_its_end_reach_the_process(server: StreamingServer) -> None:
    async with await SpdyClient.connect(url(server, "cat", stdin=True)) as client:
        streams = await client.command("error", "stdin", "stdout", "stderr")
        await streams["stdin"].write(b"one ")
        await streams["stdout"].until(b"one ")
        await streams["stdin"].write(b"two", end=True)
        assert await streams["stdout"].all() == b"one two"
        assert exit_code(await status_of(streams["error"])) == 0


async def test_100_mib_through_cat_both_ways(server: StreamingServer) -> None:
    block = os.urandom(MIB)
    async with await SpdyClient.connect(url(server, "cat", stdin=True)) as client:
        streams = await client.command("error", "stdin", "stdout", "stderr")

        async def send() -> None:
            for _ in range(100):
                await streams["stdin"].write(block)
            await streams["stdin"].end()

        sender = asyncio.create_task(send())
        data = await asyncio.wait_for(streams["stdout"].ended.wait(), 60) and bytes(streams["stdout"].received)
        await sender
        assert hashlib.sha256(data).digest() == hashlib.sha256(block * 100).digest()
        assert exit_code(await status_of(streams["error"])) == 0
        assert sum(client.window_updates.values()) > 150 * MIB, "windows of stream and connection are reopened"


async def test_a_process_that_reads_nothing_holds_the_client_back_but_pings_are_answered_before(
    server: StreamingServer,
) -> None:
    async with await SpdyClient.connect(url(server, "sleep", "1000", stdin=True)) as client:
        streams = await client.command("error", "stdin", "stdout", "stderr")
        client.ping(1)
        sender = asyncio.create_task(streams["stdin"].write(bytes(64 * MIB)))
        async with asyncio.timeout(SECONDS):
            while 1 not in client.pongs:
                client.changed.clear()
                await client.changed.wait()
        done, _ = await asyncio.wait([sender], timeout=0.5)
        assert not done, "64 MiB went somewhere"
        sender.cancel()
        await asyncio.gather(sender, return_exceptions=True)


async def test_a_client_that_leaves_while_held_back_ends_the_process(server: StreamingServer, backend: LocalBackend) -> None:
    """Little enough that the client's farewell, which comes after its data, fits into the server's socket."""
    async with await SpdyClient.connect(url(server, "sleep", "1000", stdin=True)) as client:
        streams = await client.command("error", "stdin", "stdout", "stderr")
        await asyncio.wait_for(streams["stdin"].write(bytes(64 * 1024 + STREAM_BYTES + 32 * 1024)), SECONDS)
        await asyncio.sleep(0.2)  # a moment for the server to stop reading; were it too short, the test would still hold
    async with asyncio.timeout(SECONDS):
        await backend.processes[0].closed.wait()


async def test_a_client_that_reads_nothing_holds_the_process_back(server: StreamingServer, backend: LocalBackend) -> None:
    script = "import os; os.write(2, b'begun\\n')\nwhile True: os.write(1, bytes(65536))"
    async with await SpdyClient.connect(url(server, sys.executable, "-c", script)) as client:
        streams = await client.command("error", "stdout", "stderr")
        await streams["stderr"].until(b"\n")
        client.stop_reading()
        pid = backend.processes[0].process.pid
        before = -1
        async with asyncio.timeout(SECONDS):
            while (now := _written(pid)) != before:
                before = now
                await asyncio.sleep(0.3)
        assert before < 32 * MIB
        client.go_on_reading()
        streams["stdout"].keep = False
        async with asyncio.timeout(SECONDS):
            while streams["stdout"].count < 2 * before + MIB:
                streams["stdout"].changed.clear()
                await streams["stdout"].changed.wait()


def _written(pid: int) -> int:
    with open(f"/proc/{pid}/io") as file:
        return int(next(line for line in file if line.startswith("wchar")).split()[1])


async def test_a_terminal_with_resize(server: StreamingServer) -> None:
    async with await SpdyClient.connect(url(server, "sh", tty=True, stdin=True)) as client:
        streams = await client.command("error", "stdin", "stdout", "resize")
        await streams["resize"].write(b'{"Width":101,"Height":33}\n')
        await streams["stdin"].write(b"stty -echo; until [ \"$(stty size)\" = '33 101' ]; do :; done; echo sized; exit 5\n")
        assert b"sized\r\n" in await streams["stdout"].all()
        assert exit_code(await status_of(streams["error"])) == 5


async def test_a_client_that_leaves_ends_the_tree(server: StreamingServer, backend: LocalBackend) -> None:
    async with await SpdyClient.connect(url(server, "sh", "-c", "sleep 1000 & echo $!; wait")) as client:
        streams = await client.command("error", "stdout", "stderr")
        child = int(await streams["stdout"].until(b"\n"))
    async with asyncio.timeout(SECONDS):
        await backend.processes[0].closed.wait()
    await gone(child)


async def test_stopping_the_server_ends_sessions(server: StreamingServer, backend: LocalBackend) -> None:
    async with await SpdyClient.connect(url(server, "sleep", "1000")) as client:
        await client.command("error", "stdout", "stderr")
        async with asyncio.timeout(SECONDS):
            while not backend.processes:
                await asyncio.sleep(0.01)
        await server.stop()
        assert backend.processes[0].closed.is_set()
        async with asyncio.timeout(SECONDS):
            await client.over.wait()


async def test_closed_output_is_no_exit(server: StreamingServer) -> None:
    script = "exec >&- 2>&-; read line; exit 9"
    async with await SpdyClient.connect(url(server, "sh", "-c", script, stdin=True)) as client:
        streams = await client.command("error", "stdin", "stdout", "stderr")
        assert await streams["stdout"].all() == b""
        assert not streams["error"].ended.is_set()
        await streams["stdin"].write(b"go\n")
        assert exit_code(await status_of(streams["error"])) == 9


async def test_the_exit_wins_over_a_grandchild_that_holds_the_output(server: StreamingServer, backend: LocalBackend) -> None:
    script = "sleep 1000 & echo $!; head -c 300000 /dev/zero; exit 4"
    async with await SpdyClient.connect(url(server, "sh", "-c", script)) as client:
        streams = await client.command("error", "stdout", "stderr")
        output = await streams["stdout"].all()
        child = int(output.split(b"\n")[0])
        try:
            assert len(output) > 300000, "all that was written before the exit arrives"
            assert exit_code(await status_of(streams["error"])) == 4
        finally:
            os.kill(child, signal.SIGKILL)


async def test_the_exit_wins_over_a_grandchild_that_never_shuts_up(server: StreamingServer, backend: LocalBackend) -> None:
    async with await SpdyClient.connect(url(server, "sh", "-c", "yes & echo $! >&2; exit 4")) as client:
        streams = await client.command("error", "stdout", "stderr")
        assert exit_code(await status_of(streams["error"])) == 4
        os.kill(int(streams["stderr"].received), signal.SIGKILL)


async def test_input_for_a_process_that_closed_its_stdin_is_dropped(server: StreamingServer) -> None:
    script = "exec <&-; echo closed; sleep 0.1; exit 6"
    async with await SpdyClient.connect(url(server, "sh", "-c", script, stdin=True)) as client:
        streams = await client.command("error", "stdin", "stdout", "stderr")
        await streams["stdout"].until(b"closed")
        sender = asyncio.create_task(streams["stdin"].write(bytes(8 * MIB)))
        assert exit_code(await status_of(streams["error"])) == 6
        await asyncio.gather(sender, return_exceptions=True)


async def test_a_failed_start_is_told_on_the_error_stream(server: StreamingServer) -> None:
    for container, words in (("missing", "container missing does not exist"), ("broken", "in the log of crisp")):
        address = server.exec_url(container, ["x"], tty=False, stdin=False, stdout=True, stderr=False)
        async with await SpdyClient.connect(address) as client:
            streams = await client.command("error", "stdout")
            status = await status_of(streams["error"])
            assert (status["status"], status["reason"]) == ("Failure", "InternalError")
            assert words in status["message"]


async def test_streams_that_nobody_asked_for_are_refused(server: StreamingServer) -> None:
    async with await SpdyClient.connect(url(server, "true")) as client:
        for kind in ("stdin", "nonsense"):
            with pytest.raises(Refused):
                await client.open(streamtype=kind)
        await client.open(streamtype="error")
        with pytest.raises(Refused):
            await client.open(streamtype="error")


async def test_a_client_that_opens_too_few_streams_is_let_go(server: StreamingServer, backend: LocalBackend) -> None:
    async with await SpdyClient.connect(url(server, "true")) as client:
        await client.open(streamtype="error")
        async with asyncio.timeout(SECONDS):
            await client.over.wait()
        assert client.gone_away.is_set()
        assert not backend.processes


async def test_pings_are_answered_all_along(server: StreamingServer) -> None:
    async with await SpdyClient.connect(url(server, "cat", stdin=True)) as client:
        streams = await client.command("error", "stdin", "stdout", "stderr")
        for number in (1, 3, 5):
            client.ping(number)
        await streams["stdin"].write(b"x", end=True)
        await streams["stdout"].all()
        assert client.pongs == [1, 3, 5]


async def test_bytes_that_come_with_the_request_count(server: StreamingServer) -> None:
    ping = bytes.fromhex("80030006 00000004 00000007")
    async with await SpdyClient.connect(url(server, "true"), early=ping) as client:
        await client.command("error", "stdout", "stderr")
        assert client.pongs == [7]


async def test_fifty_sessions_at_once(server: StreamingServer) -> None:
    async def session(number: int) -> bytes:
        async with await SpdyClient.connect(url(server, "cat", stdin=True)) as client:
            streams = await client.command("error", "stdin", "stdout", "stderr")
            await streams["stdin"].write(f"session {number}".encode() * 1000, end=True)
            output = await streams["stdout"].all()
            assert exit_code(await status_of(streams["error"])) == 0
            return output

    outputs = await asyncio.gather(*(session(number) for number in range(50)))
    assert outputs == [f"session {number}".encode() * 1000 for number in range(50)]


async def test_no_descriptor_is_left(server: StreamingServer, backend: LocalBackend) -> None:
    async def session(tty: bool) -> None:
        async with await SpdyClient.connect(url(server, "sh", "-c", "echo x", tty=tty, stdin=True)) as client:
            kinds = ("resize",) if tty else ("stderr",)
            streams = await client.command("error", "stdin", "stdout", *kinds)
            await status_of(streams["error"])
            async with asyncio.timeout(SECONDS):
                await backend.processes[-1].closed.wait()

    await session(False)
    await session(True)
    before = len(os.listdir(FD_COUNT))
    for tty in (False, True, False, True):
        await session(tty)
    async with asyncio.timeout(SECONDS):
        while len(os.listdir(FD_COUNT)) > before:
            await asyncio.sleep(0.01)


async def test_several_clients_attached_at_once(server: StreamingServer, backend: LocalBackend) -> None:
    name = await backend.add_container("sh", "-c", 'while read line; do echo "got $line"; done; echo bye')
    address = [server.attach_url(name, tty=False, stdin=True, stdout=True, stderr=False) for _ in range(2)]
    async with await SpdyClient.connect(address[0]) as one, await SpdyClient.connect(address[1]) as two:
        first = await one.command("error", "stdin", "stdout")
        second = await two.command("error", "stdin", "stdout")
        async with asyncio.timeout(SECONDS):
            while len(backend.containers[name].clients) < 2:
                await asyncio.sleep(0.01)
        await first["stdin"].write(b"a\n")
        await second["stdout"].until(b"got a\n")
        await second["stdin"].write(b"b\n")
        await first["stdout"].until(b"got a\ngot b\n")
        await first["stdin"].end()
        await second["stdin"].end()
        for streams in (first, second):
            assert (await streams["stdout"].all()).endswith(b"bye\n")
            assert exit_code(await status_of(streams["error"])) == 0


async def test_leaving_an_attach_leaves_the_container(server: StreamingServer, backend: LocalBackend) -> None:
    name = await backend.add_container("cat")
    for _ in range(2):
        address = server.attach_url(name, tty=False, stdin=True, stdout=True, stderr=False)
        async with await SpdyClient.connect(address) as client:
            streams = await client.command("error", "stdin", "stdout")
            await streams["stdin"].write(b"hello\n")
            await streams["stdout"].until(b"hello\n")
    assert backend.containers[name].process.returncode is None
