"""The command's client beside a server of gRPC's own, and beside servers that do wrong."""

from __future__ import annotations

import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent import futures
from contextlib import contextmanager, suppress
from pathlib import Path

import grpc
import pytest

from proto import admin_pb2 as admin
from proto import admin_pb2_grpc, api_pb2_grpc
from proto import api_pb2 as cri
from proto.errors import Code, CrispError
from proto.grpc_client import Connection, Ended, Event, Message
from runtime import limits
from runtime.client import CallError, Client

ROOT = Path(__file__).resolve().parents[2]
WORDS = "não: 100 %\n– 'x' \U0001f40b"


class Runtime(api_pb2_grpc.RuntimeServiceServicer):
    """Answers, fails, or takes its time, by what is asked for."""

    def __init__(self) -> None:
        self.begun, self.cancelled = threading.Event(), threading.Event()

    def Version(self, request: cri.VersionRequest, context: grpc.ServicerContext) -> cri.VersionResponse:
        return cri.VersionResponse(version=request.version)

    def PodSandboxStatus(
        self, request: cri.PodSandboxStatusRequest, context: grpc.ServicerContext
    ) -> cri.PodSandboxStatusResponse:
        if request.pod_sandbox_id.startswith("no"):
            context.abort(grpc.StatusCode.NOT_FOUND, f"{request.pod_sandbox_id}: {WORDS}")
        return cri.PodSandboxStatusResponse(status=cri.PodSandboxStatus(id=request.pod_sandbox_id))

    def StopContainer(self, request: cri.StopContainerRequest, context: grpc.ServicerContext) -> cri.StopContainerResponse:
        gone = threading.Event()
        context.add_callback(gone.set)
        self.begun.set()
        gone.wait(60)
        self.cancelled.set()
        return cri.StopContainerResponse()

    def GetContainerEvents(
        self, request: cri.GetEventsRequest, context: grpc.ServicerContext
    ) -> Iterator[cri.ContainerEventResponse]:
        for number in range(3):
            yield cri.ContainerEventResponse(container_id=str(number))
        context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "three are enough")


class Admin(admin_pb2_grpc.AdminServicer):
    def PullImage(self, request: admin.PullImageRequest, context: grpc.ServicerContext) -> Iterator[admin.ImageProgress]:
        yield admin.ImageProgress(item="layer", total=5)
        yield admin.ImageProgress(done=True, image_ids=[request.reference])


def serve(path: Path, runtime: Runtime) -> grpc.Server:
    sizes = [("grpc.max_send_message_length", -1), ("grpc.max_receive_message_length", -1)]
    server = grpc.server(futures.ThreadPoolExecutor(8), options=sizes)
    api_pb2_grpc.add_RuntimeServiceServicer_to_server(runtime, server)  # type: ignore[no-untyped-call]
    admin_pb2_grpc.add_AdminServicer_to_server(Admin(), server)  # type: ignore[no-untyped-call]
    server.add_insecure_port(f"unix://{path}")
    server.start()
    return server


@pytest.fixture
def runtime() -> Runtime:
    return Runtime()


@pytest.fixture
def path(tmp_path: Path, runtime: Runtime) -> Iterator[str]:
    server = serve(tmp_path / "s", runtime)
    yield str(tmp_path / "s")
    server.stop(None).wait()


def version(client: Client, text: str, timeout: float | None = None) -> str:
    return str(client.runtime.Version(cri.VersionRequest(version=text), timeout=timeout).version)


def test_calls_one_after_the_other_and_many_at_once(path: str) -> None:
    with Client(path) as client:
        assert [version(client, str(number)) for number in range(300)] == [str(number) for number in range(300)]
        with futures.ThreadPoolExecutor(16) as threads:
            assert [*threads.map(lambda n: version(client, str(n)), range(300))] == [str(n) for n in range(300)]


@pytest.mark.parametrize("size", [0, 65_535, 65_536, 1_000_000, limits.GRPC_MESSAGE_BYTES - 100])
def test_messages_of_any_size_both_ways(path: str, size: int) -> None:
    with Client(path) as client:
        for _ in range(3):
            assert version(client, "x" * size) == "x" * size


def test_a_message_that_is_too_large(path: str) -> None:
    with Client(path) as client:
        with pytest.raises(CallError, match="more than") as failed:
            version(client, "x" * (limits.GRPC_MESSAGE_BYTES + 100))
        assert failed.value.code is Code.RESOURCE_EXHAUSTED
        assert version(client, "x") == "x"


def test_what_failed_is_told_beside_what_did_not(path: str) -> None:
    names = [f"no-{number}" if number % 3 else str(number) for number in range(250)]
    with Client(path) as client:
        found = [*client.runtime.PodSandboxStatus.each(cri.PodSandboxStatusRequest(pod_sandbox_id=name) for name in names)]
        for name, reply in zip(names, found, strict=True):
            if name.startswith("no"):
                assert isinstance(reply, CallError)
                assert (reply.code, reply.message) == (Code.NOT_FOUND, f"{name}: {WORDS}")
            else:
                assert reply.status.id == name
        with pytest.raises(CallError, match="no-1"):
            client.runtime.PodSandboxStatus(cri.PodSandboxStatusRequest(pod_sandbox_id="no-1"))
        with pytest.raises(CallError) as missing:
            client.images.ListImages(cri.ListImagesRequest())
        assert missing.value.code is Code.UNIMPLEMENTED
        with pytest.raises(AttributeError):
            client.runtime.NoSuchCall(cri.VersionRequest())


def test_several_answers(path: str) -> None:
    with Client(path) as client:
        told = [*client.admin.PullImage(admin.PullImageRequest(reference="a"))]
        assert [(step.item, list(step.image_ids)) for step in told] == [("layer", []), ("", ["a"])]
        stream = client.runtime.GetContainerEvents(cri.GetEventsRequest())
        assert [next(stream).container_id for _ in range(3)] == ["0", "1", "2"]
        with pytest.raises(CallError, match="three are enough"):
            next(stream)
        assert version(client, "after") == "after"


def test_a_deadline(path: str, runtime: Runtime) -> None:
    with Client(path) as client:
        with pytest.raises(CallError) as failed:
            client.runtime.StopContainer(cri.StopContainerRequest(), timeout=0.05)
        assert failed.value.code is Code.DEADLINE_EXCEEDED
        assert version(client, "after", timeout=60) == "after"
    assert runtime.cancelled.wait(60)


def test_a_call_behind_ends_with_the_client(path: str, runtime: Runtime) -> None:
    with Client(path) as client:
        client.runtime.StopContainer.behind(cri.StopContainerRequest())
        assert runtime.begun.wait(60)
        assert version(client, "beside") == "beside"
    assert runtime.cancelled.wait(60)


def test_a_signal_ends_a_call_that_waits(path: str, runtime: Runtime) -> None:
    """As Ctrl-C does; the daemon sees that nobody waits any more."""
    program = (
        "import sys; from proto import api_pb2 as cri; from runtime.client import Client\n"
        "with Client(sys.argv[1]) as client:\n"
        "    client.runtime.StopContainer(cri.StopContainerRequest())\n"
    )
    with subprocess.Popen([sys.executable, "-c", program, path], cwd=ROOT, stderr=subprocess.PIPE) as running:
        assert runtime.begun.wait(60)
        running.send_signal(2)
        _, errors = running.communicate()
    assert b"KeyboardInterrupt" in errors
    assert runtime.cancelled.wait(60)


def test_a_daemon_that_is_started_anew(tmp_path: Path) -> None:
    first = serve(tmp_path / "s", Runtime())
    with Client(str(tmp_path / "s")) as client:
        assert version(client, "first") == "first"
        first.stop(None).wait()
        with pytest.raises(CallError) as failed:
            version(client, "nobody")
        assert failed.value.code is Code.UNAVAILABLE
        (tmp_path / "s").unlink(missing_ok=True)
        second = serve(tmp_path / "s", Runtime())
        assert version(client, "second") == "second"
        second.stop(None).wait()


def test_no_daemon(tmp_path: Path) -> None:
    with pytest.raises(CrispError, match="crisp serve"):
        Client(str(tmp_path / "none"))
    (tmp_path / "file").touch()
    with (
        Client(str(tmp_path / "file")) as client,
        pytest.raises(CallError, match="Connection refused"),
    ):
        version(client, "")


def frame(kind: int, flags: int, stream: int, content: bytes) -> bytes:
    return struct.pack(">I", len(content) << 8 | kind) + struct.pack(">BI", flags, stream) + content


def answer(message: bytes, status: bytes) -> bytes:
    """What a server says to the first call."""
    headers = b"\x88\x00\x0ccontent-type\x10application/grpc"
    trailers = b"\x00\x0bgrpc-status\x01" + status + b"\x00\x0cgrpc-message\x09a%20b%2b%"
    half = len(headers) // 2
    return (
        frame(4, 0, 0, struct.pack(">HI", 5, 1 << 20))
        + frame(1, 0, 1, headers[:half])
        + frame(9, 4, 1, headers[half:])
        + frame(6, 0, 0, b"12345678")
        + frame(77, 0, 0, b"of a later time")
        + frame(0, 8, 1, b"\x03" + struct.pack(">BI", 0, len(message)) + message + b"pad")
        + frame(1, 0x2D, 1, b"\x02" + bytes(5) + trailers + b"--")
    )


def received(data: bytes, step: int) -> tuple[Connection, list[Event]]:
    connection = Connection(1000)
    assert connection.call("/a.B/C", b"request") == 1
    events = []
    for at in range(0, len(data), step):
        events += connection.receive(data[at : at + step])
    return connection, events


@pytest.mark.parametrize("step", [1, 2, 3, 7, 1000])
def test_answers_in_pieces(step: int) -> None:
    connection, (message, ended) = received(answer(b"reply", b"5"), step)
    assert isinstance(message, Message)
    assert (message.stream, message.data) == (1, b"reply")
    assert isinstance(ended, Ended)
    assert (ended.stream, ended.code, ended.text) == (1, Code.NOT_FOUND, "a b+%")
    assert connection.to_send().endswith(frame(4, 1, 0, b"") + frame(6, 1, 0, b"12345678"))
    assert (connection.calls, connection.closed) == (0, False)


def _ended(data: bytes) -> tuple[Code | None, str]:
    connection, events = received(data, 1000)
    events += connection.receive(b"")
    (ended,) = events
    assert isinstance(ended, Ended)
    assert connection.closed
    assert connection.receive(b"") == []
    return ended.code, ended.text


@pytest.mark.parametrize(
    ("data", "code", "said"),
    [
        (b"", Code.UNAVAILABLE, "ended"),
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", Code.INTERNAL, "speaks no HTTP/2"),
        (frame(0, 0, 1, b"\x01" + bytes(4)), Code.INTERNAL, "compressed"),
        (frame(0, 0, 1, struct.pack(">BI", 0, 1001)), Code.RESOURCE_EXHAUSTED, "1001"),
        (frame(0, 1, 1, b""), Code.INTERNAL, "no status"),
        (frame(0, 8, 1, b"\x01"), Code.INTERNAL, "padding"),
        (frame(1, 5, 1, b"\x8d"), Code.UNKNOWN, "404"),
        (frame(1, 4, 1, b"\x8e"), Code.UNKNOWN, "500"),
        (frame(1, 0, 1, b"") + frame(6, 0, 0, bytes(8)), Code.INTERNAL, "do not go on"),
        (frame(9, 0, 1, b""), Code.INTERNAL, "have not begun"),
        (frame(1, 0, 1, bytes(16384)) + frame(9, 0, 1, bytes(16384)) * 4, Code.INTERNAL, "more than 65536"),
        (frame(1, 5, 1, b"\xbe"), Code.INTERNAL, "speaks no HTTP/2"),
        (frame(7, 0, 0, bytes(8)), Code.UNAVAILABLE, "is ending"),
        (frame(7, 0, 0, struct.pack(">II", 1, 0)), Code.UNAVAILABLE, "has ended"),
        (frame(3, 0, 1, struct.pack(">I", 8)), Code.CANCELLED, "reset"),
        (frame(3, 0, 1, struct.pack(">I", 99)), Code.INTERNAL, "99"),
        (frame(4, 0, 0, struct.pack(">HI", 4, 1 << 31)), Code.INTERNAL, "window"),
        (frame(4, 0, 0, b"12345"), Code.INTERNAL, "type 4"),
        (frame(1, 5, 1, b"\x00\x0bgrpc-status\x0299"), Code.UNKNOWN, ""),
        (frame(1, 5, 1, b"\x00\x0bgrpc-status" + b"\x7f\x89\x26" + b"9" * 5000), Code.UNKNOWN, ""),
        (frame(0, 0, 1, b"\x00\x00\x00\x00\x05ab") + frame(1, 5, 1, b"\x00\x0bgrpc-status\x010"), Code.INTERNAL, "within"),
    ],
)
def test_what_servers_may_do_wrong(data: bytes, code: Code, said: str) -> None:
    found, text = _ended(data)
    assert found is code
    assert said in text


def test_a_server_says_how_much_it_takes() -> None:
    """Of one call, of all together, and anew when it has changed its mind."""
    connection = Connection(1000)
    connection.call("/a.B/C", bytes(70_000))
    connection.call("/a.B/C", bytes(10))
    connection.to_send()
    assert connection.receive(frame(4, 0, 0, struct.pack(">HI", 4, 65_535 + 70_000))) == []
    assert connection.to_send() == frame(4, 1, 0, b"")  # of all together there is nothing left
    connection.receive(frame(8, 0, 0, struct.pack(">I", 70_005 - 65_535 + 5)))
    sent = connection.to_send()
    assert sent == frame(0, 1, 1, bytes(70_005 - 65_535)) + frame(0, 0, 3, bytes(4) + b"\n")
    connection.receive(frame(8, 0, 0, struct.pack(">I", 1000)))
    assert connection.to_send() == frame(0, 1, 3, bytes(10))
    assert connection.calls == 2


def test_a_server_s_table_of_headers_may_have_no_bytes() -> None:
    """RFC 7541, 4.2: a block tells so before anything else, and the next ones need not."""
    connection = Connection(1000)
    connection.call("/a.B/C", b"")
    assert connection.to_send().partition(frame(8, 0, 0, struct.pack(">I", (1 << 31) - 65_536)))[2][9:11] == b"\x20\x00"
    connection.receive(frame(4, 0, 0, struct.pack(">HI", 1, 0)))
    connection.to_send()
    connection.call("/a.B/C", b"")
    assert connection.to_send()[9:10] == b"\x00"


@contextmanager
def peer(path: Path, act: Callable[[socket.socket], object]) -> Iterator[Client]:
    """A client, and what its first connection meets."""
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(path))
        listening.listen()
        listening.settimeout(60)

        def accept() -> None:
            line, _ = listening.accept()
            with line, suppress(OSError):
                act(line)

        thread = threading.Thread(target=accept)
        thread.start()
        with Client(str(path)) as client:
            yield client
        thread.join()


def read_all(line: socket.socket) -> None:
    while line.recv(1 << 16):
        pass


def ask_without_end(line: socket.socket) -> None:
    while True:
        line.sendall(frame(6, 0, 0, bytes(8)))
        line.recv(1 << 16)


@pytest.mark.parametrize("act", [lambda line: line.close(), lambda line: line.send(b"SSH-2.0-x\r\n" * 10)])
def test_another_s_socket(tmp_path: Path, act: Callable[[socket.socket], object]) -> None:
    with peer(tmp_path / "s", act) as client, pytest.raises(CallError):
        version(client, "")


@pytest.mark.parametrize("act", [read_all, ask_without_end])
def test_a_deadline_of_a_server_that_keeps_none(tmp_path: Path, act: Callable[[socket.socket], object]) -> None:
    with peer(tmp_path / "s", act) as client, pytest.raises(CallError) as failed:
        version(client, "", timeout=0.3)
    assert failed.value.code is Code.DEADLINE_EXCEEDED


def test_a_deadline_of_a_server_that_reads_nothing(tmp_path: Path) -> None:
    done = threading.Event()

    def widen(line: socket.socket) -> None:
        line.sendall(frame(4, 0, 0, struct.pack(">HI", 4, (1 << 31) - 1)) + frame(8, 0, 0, struct.pack(">I", 1 << 30)))
        done.wait(60)

    with peer(tmp_path / "s", widen) as client:
        with pytest.raises(CallError) as failed:
            version(client, "x" * (8 << 20), timeout=0.5)
        done.set()
    assert failed.value.code is Code.DEADLINE_EXCEEDED


def test_what_was_said_before_the_end_is_read(tmp_path: Path) -> None:
    """Also where something was still to be sent."""

    def say_and_go(line: socket.socket) -> None:
        line.recv(1 << 16)
        line.sendall(frame(1, 4, 1, b"\x88\x00\x0bgrpc-status\x015") + frame(1, 5, 1, b"\x00\x0bgrpc-status\x015"))

    with peer(tmp_path / "s", say_and_go) as client, pytest.raises(CallError) as failed:
        version(client, "x" * 1_000_000)
    assert failed.value.code is Code.NOT_FOUND


def test_an_answer_that_is_no_message(tmp_path: Path) -> None:
    def answer_badly(line: socket.socket) -> None:
        line.recv(1 << 16)
        line.sendall(frame(1, 4, 1, b"\x88") + frame(0, 0, 1, b"\0\0\0\0\x02\x0a\xff"))
        read_all(line)

    for call in (lambda client: version(client, ""), lambda client: next(client.admin.PullImage(admin.PullImageRequest()))):
        with peer(tmp_path / "s", answer_badly) as client, pytest.raises(CallError, match="the answer is no ") as failed:
            call(client)
        assert failed.value.code is Code.INTERNAL
        (tmp_path / "s").unlink()


def test_the_end_of_replies_is_no_other_s(path: str) -> None:
    with Client(path) as client:
        over = client.admin.PullImage(admin.PullImageRequest(reference="a"))
        assert len([*over]) == 2
        other = client.runtime.GetContainerEvents(cri.GetEventsRequest())
        assert next(other).container_id == "0"
        over.cancel()
        assert next(other).container_id == "1"
        other.cancel()
        with pytest.raises(CallError):
            while next(other):
                pass


@pytest.mark.parametrize("command", ["ps", "images", "stop", "rm", "logs", "inspect", "pull", "build", "run"])
def test_quick_commands_load_nothing_large(command: str) -> None:
    """Each of these takes longer to load than a short command takes in all."""
    program = (
        "import sys; from runtime.cli.main import load; from runtime import client; load(sys.argv[1])\n"
        "print(*sorted({'grpc', 'asyncio', 'rich', 'structlog', 'logging', 'aiohttp', 'pyroute2'} & {*sys.modules}))"
    )
    done = subprocess.run([sys.executable, "-c", program, command], cwd=ROOT, capture_output=True, check=True)
    assert done.stdout.split() == []
