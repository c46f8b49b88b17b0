"""Exec, attach and port-forward into real containers, with clients of the tests' own: SPDY, and aiohttp for WebSocket."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import pty
import shutil
import signal
import socket
import subprocess
import sys
import termios
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import grpc
import pytest

from proto import admin_pb2 as admin
from proto import api_pb2 as cri
from tests.harness.daemon import ROOT, Daemon
from tests.harness.host import crictl
from tests.harness.kubelet import Container, Kubelet
from tests.harness.waiting import wait_until
from tests.unit.streaming.spdy_client import SpdyClient, exit_code, status_of

pytestmark = pytest.mark.root

MIB = 1024 * 1024
CRICTL = crictl()


def exec_url(container: Container, *command: str, tty: bool = False, stdin: bool = False) -> str:
    request = cri.ExecRequest(container_id=container.id, cmd=command, tty=tty, stdin=stdin, stdout=True, stderr=not tty)
    url: str = container.runtime.Exec(request).url
    assert url.startswith("http://127.0.0.1:")
    return url


def attach_url(container: Container, *, stdin: bool = False, tty: bool = False) -> str:
    request = cri.AttachRequest(container_id=container.id, stdin=stdin, stdout=True, stderr=not tty, tty=tty)
    return str(container.runtime.Attach(request).url)


def sleeper(kubelet: Kubelet) -> Container:
    return kubelet.pod().run("/bin/sleep", "1000")


@pytest.mark.parametrize(("script", "code"), [("exit 0", 0), ("exit 7", 7), ("kill -KILL $$", 137)])
async def test_exit_codes(kubelet: Kubelet, script: str, code: int) -> None:
    async with await SpdyClient.connect(
        exec_url(sleeper(kubelet), "/bin/sh", "-c", f"echo out; echo err >&2; {script}")
    ) as c:
        streams = await c.command("error", "stdout", "stderr")
        assert exit_code(await status_of(streams["error"])) == code
        assert await streams["stdout"].all() == b"out\n"
        assert await streams["stderr"].all() == b"err\n"


async def test_interactive_shell_with_resize(kubelet: Kubelet) -> None:
    async with await SpdyClient.connect(exec_url(sleeper(kubelet), "/bin/sh", tty=True, stdin=True)) as client:
        streams = await client.command("error", "stdin", "stdout", "resize")
        await streams["resize"].write(b'{"Width":101,"Height":37}')
        await streams["stdin"].write(
            b"echo begin; while [ \"$(stty size)\" != '37 101' ]; do sleep 0.05; done; echo si''zed\n"
        )
        await streams["stdout"].until(b"sized\r\n")
        await streams["stdin"].write(b"exit 5\n")
        assert exit_code(await status_of(streams["error"])) == 5


async def test_100_megabytes_both_ways(kubelet: Kubelet) -> None:
    """Through `cat`: what comes back is what went in, and the end of the input reaches the process."""
    block = os.urandom(MIB)
    sent = hashlib.sha256()
    async with await SpdyClient.connect(exec_url(sleeper(kubelet), "/bin/cat", stdin=True)) as client:
        streams = await client.command("error", "stdin", "stdout", "stderr")
        for _ in range(100):
            sent.update(block)
            await streams["stdin"].write(block)
        await streams["stdin"].end()
        assert exit_code(await status_of(streams["error"])) == 0
        received = await streams["stdout"].all()
    assert len(received) == 100 * MIB
    assert hashlib.sha256(received).digest() == sent.digest()


async def test_disconnect_ends_the_tree_and_not_the_container(kubelet: Kubelet) -> None:
    container = sleeper(kubelet)
    script = "(setsid sleep 5151 &) ; sleep 5151 & echo ready; wait; sleep 5151"
    client = await SpdyClient.connect(exec_url(container, "/bin/sh", "-c", script))
    streams = await client.command("error", "stdout", "stderr")
    await streams["stdout"].until(b"ready")
    await client.close()
    await asyncio.to_thread(wait_until, lambda: "5151" not in container.sh("ps -o args"))
    assert container.status().state == cri.CONTAINER_RUNNING


async def test_50_sessions_at_once(kubelet: Kubelet) -> None:
    container = sleeper(kubelet)

    async def one(number: int) -> None:
        url = await asyncio.to_thread(exec_url, container, "/bin/sh", "-c", "read x; echo got $x", stdin=True)
        async with await SpdyClient.connect(url) as client:
            streams = await client.command("error", "stdin", "stdout", "stderr")
            await streams["stdin"].write(f"{number}\n".encode())
            assert exit_code(await status_of(streams["error"])) == 0
            assert await streams["stdout"].all() == f"got {number}\n".encode()

    await asyncio.gather(*(one(number) for number in range(50)))


async def test_several_attached_clients_see_from_now_on(kubelet: Kubelet) -> None:
    wanted = cri.ContainerConfig(stdin=True)
    container = kubelet.pod().run("/bin/sh", "-c", "echo before; while read x; do echo got $x; done; exit 3", config=wanted)
    wait_until(lambda: "before" in container.output())
    async with (
        await SpdyClient.connect(attach_url(container, stdin=True)) as first,
        await SpdyClient.connect(attach_url(container)) as second,
    ):
        mine = await first.command("error", "stdin", "stdout", "stderr")
        theirs = await second.command("error", "stdout", "stderr")
        # The second client is attached a moment after its streams are open: what comes meanwhile is not for it.
        while not theirs["stdout"].received:
            await mine["stdin"].write(b"one\n")
            await asyncio.sleep(0.02)
        await mine["stdin"].write(b"last\n")
        for streams in (mine, theirs):
            await streams["stdout"].until(b"got last\n")
        container.stop(0)
        everything, later = await mine["stdout"].all(), await theirs["stdout"].all()
    assert later.startswith(b"got one\n")
    assert everything.endswith(later)
    assert container.output().encode() == b"before\n" + everything


async def test_stdin_once_ends_with_its_client(kubelet: Kubelet) -> None:
    wanted = cri.ContainerConfig(stdin=True, stdin_once=True)
    container = kubelet.pod().run("/bin/sh", "-c", "cat; exit 4", config=wanted)
    async with await SpdyClient.connect(attach_url(container, stdin=True)) as client:
        streams = await client.command("error", "stdin", "stdout", "stderr")
        await streams["stdin"].write(b"all there is\n")
        await streams["stdin"].end()
        assert await streams["stdout"].all() == b"all there is\n"
    status = await asyncio.to_thread(container.wait)
    assert status.exit_code == 4


async def test_attach_to_a_terminal(kubelet: Kubelet) -> None:
    container = kubelet.pod().run("/bin/sh", config=cri.ContainerConfig(tty=True, stdin=True))
    async with await SpdyClient.connect(attach_url(container, stdin=True, tty=True)) as client:
        streams = await client.command("error", "stdin", "stdout", "resize")
        await streams["resize"].write(b'{"Width":90,"Height":20}')
        await streams["stdin"].write(b"while [ \"$(stty size)\" != '20 90' ]; do sleep 0.05; done; echo y''es\n")
        await streams["stdout"].until(b"yes\r\n")
        await streams["stdin"].write(b"exit\n")
        await streams["stdout"].all()
    status = await asyncio.to_thread(container.wait)
    assert status.exit_code == 0


@pytest.mark.parametrize("protocol", ["v5.channel.k8s.io", "v4.channel.k8s.io"])
async def test_websocket(kubelet: Kubelet, protocol: str) -> None:
    url = exec_url(sleeper(kubelet), "/bin/sh", "-c", "cat; exit 7", stdin=True)
    async with aiohttp.ClientSession() as http, http.ws_connect(url, protocols=(protocol,)) as socket:
        assert socket.protocol == protocol
        received: dict[int, bytes] = {}
        await socket.send_bytes(b"\x00hello")
        if protocol.startswith("v5"):
            await socket.send_bytes(b"\xff\x00")
        else:
            # Before v5 there is no way to say that the input ends: only to leave.
            async with asyncio.timeout(60):
                while received.get(1) != b"hello":
                    await receive(socket, received)
            return
        async with asyncio.timeout(60):
            while await receive(socket, received):
                pass
        assert received[1] == b"hello"
        assert b'"message":"7"' in received[3].replace(b" ", b"")


async def receive(socket: aiohttp.ClientWebSocketResponse, into: dict[int, bytes]) -> bool:
    message = await socket.receive()
    if message.type is not aiohttp.WSMsgType.BINARY:
        return False
    into[message.data[0]] = into.get(message.data[0], b"") + message.data[1:]
    return True


def forward_url(pod: Any, *ports: int) -> str:
    return str(pod.kubelet.runtime.PortForward(cri.PortForwardRequest(pod_sandbox_id=pod.id, port=ports)).url)


@pytest.mark.parametrize("network", [cri.POD, cri.NODE])
async def test_port_forward(kubelet: Kubelet, network: int) -> None:
    """A refused port gives an error, which names what both families said, and keeps the session."""
    config = kubelet.pod_config(network=network)
    config.hostname = "" if network == cri.NODE else config.hostname
    pod = kubelet.pod(config)
    for port in (8123, 8124):
        listener = pod.run("/bin/nc", "-ll", "-p", str(port), "-e", "/bin/cat")
        wait_until(lambda listener=listener, port=port: f":{port:04X} " in listener.sh("cat /proc/net/tcp /proc/net/tcp6"))
    async with await SpdyClient.connect(forward_url(pod, 8123), ("portforward.k8s.io",)) as client:
        refused = await client.open(streamType="error", port="9", requestID="1")
        client.syn({"streamType": "data", "port": "9", "requestID": "1"})  # which is reset as soon as it is there
        message = await refused.all()
        assert b"127.0.0.1: Connection refused" in message
        assert b"::1: Connection refused" in message
        for request, port in enumerate(("8123", "8124"), 2):
            await client.open(streamType="error", port=port, requestID=str(request))
            data = await client.open(streamType="data", port=port, requestID=str(request))
            await data.write(b"ping " + port.encode())
            assert await data.until(b"ping " + port.encode())


def test_urls_are_refused_where_nothing_can_come_of_them(kubelet: Kubelet) -> None:
    pod = kubelet.pod()
    created, running = pod.create("/bin/true"), pod.run("/bin/sleep", "100")
    with pytest.raises(grpc.RpcError, match="not running"):
        exec_url(created, "/bin/true")
    with pytest.raises(grpc.RpcError) as caught:
        running.runtime.Exec(cri.ExecRequest(container_id=running.id, cmd=["x"], tty=True, stdout=True, stderr=True))
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    with pytest.raises(grpc.RpcError) as caught:
        running.runtime.Exec(cri.ExecRequest(container_id=running.id, cmd=["x"]))
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    pod.stop()
    with pytest.raises(grpc.RpcError, match="not ready"):
        forward_url(pod, 80)


def crisp(kubelet: Kubelet, *arguments: str, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:

    command = [sys.executable, str(ROOT / "crisp.py"), "--socket", kubelet.daemon.socket, *arguments]
    return subprocess.run(command, input=stdin, capture_output=True, timeout=60)


def test_crisp_exec(kubelet: Kubelet) -> None:
    container = sleeper(kubelet)
    result = crisp(kubelet, "exec", "-i", container.id[:12], "/bin/sh", "-c", "cat; echo err >&2; exit 6", stdin=b"hello")
    assert (result.returncode, result.stdout, result.stderr) == (6, b"hello", b"err\n")
    missing = crisp(kubelet, "exec", container.id, "/no/such")
    assert missing.returncode != 0
    assert b"/no/such" in missing.stderr


def test_crisp_attach(kubelet: Kubelet) -> None:
    container = kubelet.pod().run(
        "/bin/sh", "-c", "read x; echo $x", config=cri.ContainerConfig(stdin=True, stdin_once=True)
    )
    assert crisp(kubelet, "attach", "-i", container.id, stdin=b"over\n").stdout == b"over\n"


@pytest.mark.skipif(CRICTL is None, reason="no crictl: put it on PATH, or name it with CRISP_CRICTL")
@pytest.mark.parametrize("transport", ["spdy", "websocket"])
def test_official_client(kubelet: Kubelet, transport: str) -> None:
    container = sleeper(kubelet)
    base = [str(CRICTL), "-c", "/dev/null", "-r", f"unix://{kubelet.daemon.socket}"]
    result = subprocess.run(
        [*base, "exec", "-i", "--transport", transport, container.id, "/bin/cat"],
        input=b"piped\n",
        capture_output=True,
        timeout=60,
    )
    assert result.stdout == b"piped\n"
    failed = subprocess.run(
        [*base, "exec", "--transport", transport, container.id, "/bin/sh", "-c", "exit 7"], capture_output=True, timeout=60
    )
    assert b"exit code 7" in failed.stderr


@pytest.mark.skipif(CRICTL is None, reason="no crictl: put it on PATH, or name it with CRISP_CRICTL")
def test_plain_ends_are_no_errors(kubelet: Kubelet) -> None:
    """A client that leaves as soon as it has its exit code, again and again."""
    container = sleeper(kubelet)
    begin = kubelet.daemon.log_path.stat().st_size
    for _ in range(60):
        command = [
            str(CRICTL),
            "-c",
            "/dev/null",
            "-r",
            f"unix://{kubelet.daemon.socket}",
            "exec",
            container.id,
            "/bin/true",
        ]
        assert subprocess.run(command, capture_output=True, timeout=60).returncode == 0
    log = kubelet.daemon.log_path.read_text()[begin:]
    assert "Traceback" not in log
    assert [line for line in log.splitlines() if json.loads(line).get("level") in ("warning", "error")] == []


@pytest.fixture
def tls(rootfs: Path, tmp_path: Path) -> Iterator[Kubelet]:
    """A daemon that shows streaming clients a certificate that no authority of this machine has signed."""
    key, certificate = tmp_path / "key.pem", tmp_path / "cert.pem"
    command = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 1 -subj /CN=node"
    subprocess.run([*command.split(), "-keyout", str(key), "-out", str(certificate)], capture_output=True, check=True)
    daemon = Daemon(f'[streaming]\ntls_certificate = "{certificate}"\ntls_key = "{key}"\n').start()
    yield Kubelet.on(daemon, rootfs)
    daemon.remove_all()
    left = daemon.leftovers()
    daemon.destroy()
    assert left == []


@pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl is not installed")
def test_crisp_exec_and_attach_with_tls(tls: Kubelet) -> None:
    container = sleeper(tls)
    request = cri.ExecRequest(container_id=container.id, cmd=["/bin/true"], stdout=True)
    assert tls.runtime.Exec(request).url.startswith("https://")
    result = crisp(tls, "exec", "-i", container.id, "/bin/sh", "-c", "cat; exit 6", stdin=b"hello")
    assert (result.returncode, result.stdout, result.stderr) == (6, b"hello", b"")
    config = cri.ContainerConfig(stdin=True, stdin_once=True)
    reader = tls.pod().run("/bin/sh", "-c", "read x; echo $x", config=config)
    assert crisp(tls, "attach", "-i", reader.id, stdin=b"over\n").stdout == b"over\n"


def test_urls_have_hosts_and_are_used_once(kubelet: Kubelet) -> None:
    url = urlsplit(exec_url(sleeper(kubelet), "/bin/true"))
    assert url.scheme == "http"
    assert url.hostname == "127.0.0.1"
    assert len(url.path.rpartition("/")[2]) >= 8


def test_crisp_port_forward(kubelet: Kubelet) -> None:
    pod = kubelet.pod()
    listener = pod.run("/bin/nc", "-ll", "-p", "8123", "-e", "/bin/cat")
    wait_until(lambda: ":1FBB " in listener.sh("cat /proc/net/tcp /proc/net/tcp6"))
    command = [sys.executable, str(ROOT / "crisp.py"), "--socket", kubelet.daemon.socket, "port-forward", pod.id, "0:8123"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as forwarder:
        try:
            assert forwarder.stdout is not None
            local, arrow, remote = forwarder.stdout.readline().split()
            assert (arrow, remote) == ("->", "8123")
            with socket.create_connection(("127.0.0.1", int(local.rpartition(":")[2])), 20) as connection:
                connection.sendall(b"through")
                assert connection.recv(100) == b"through"
        finally:
            forwarder.send_signal(signal.SIGINT)


def on_terminal(*command: str, rows: int, columns: int) -> tuple[int, bytes]:
    """Run a command on a pseudo-terminal of this size: its exit code, and what it has shown."""
    pid, master = pty.fork()
    if pid == 0:
        termios.tcsetwinsize(0, (rows, columns))
        os.execv(command[0], command)
    seen = b""
    try:
        while part := os.read(master, 4096):
            seen += part
    except OSError:  # EIO: it has ended
        pass
    _, status = os.waitpid(pid, 0)
    os.close(master)
    return os.waitstatus_to_exitcode(status), seen


def test_a_terminal_has_its_size_when_the_command_starts(kubelet: Kubelet) -> None:
    """With runc. crun lets the process go and sets the size then, so that the process can be faster."""
    kubelet.need_handler("runc")
    container = kubelet.pod(handler="runc").run("/bin/sleep", "1000")
    command = (sys.executable, str(ROOT / "crisp.py"), "--socket", kubelet.daemon.socket, "exec", "-i", "-t", container.id)
    theirs = (str(CRICTL), "--runtime-endpoint", f"unix://{kubelet.daemon.socket}", "exec", "-i", "-t", container.id)
    for client in (command, theirs) if CRICTL else (command,):
        for number in range(5):
            code, seen = on_terminal(*client, "/bin/stty", "size", rows=33 + number, columns=101)
            assert (code, seen.split()[-2:]) == (0, [str(33 + number).encode(), b"101"])


def test_crisp_exec_with_a_terminal(kubelet: Kubelet) -> None:
    """`crisp exec -it` on a real pseudo-terminal: raw mode, the size, the exit code."""
    container = sleeper(kubelet)
    arguments = ["--socket", kubelet.daemon.socket, "exec", "-i", "-t", container.id, "/bin/sh"]
    pid, master = pty.fork()
    if pid == 0:
        os.execv(sys.executable, [sys.executable, str(ROOT / "crisp.py"), *arguments])
    termios.tcsetwinsize(master, (33, 111))
    os.write(master, b"while [ \"$(stty size)\" != '33 111' ]; do sleep 0.05; done; echo si''zed; exit 9\n")
    seen = b""
    while b"sized" not in seen:
        seen += os.read(master, 4096)
    _, status = os.waitpid(pid, 0)
    os.close(master)
    assert os.waitstatus_to_exitcode(status) == 9


def test_no_command_to_leave(kubelet: Kubelet) -> None:
    """One that has no terminal, or that nobody has begun yet."""
    container = kubelet.pod().run("/bin/sleep", "1000")
    url = kubelet.client.admin.Exec(admin.ExecRequest(container_id=container.id, cmd=["true"], tty=True)).url
    for address in (url, "", "http://127.0.0.1/exec/x"):
        with pytest.raises(grpc.RpcError) as refused:
            kubelet.client.admin.LeaveExec(admin.LeaveExecRequest(url=address))
        assert refused.value.code() is grpc.StatusCode.NOT_FOUND
