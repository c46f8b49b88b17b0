"""An NRI plugin of the tests' own. It speaks the multiplexer and ttrpc by itself and shares no code with the daemon.

    plugin = NriPlugin(path, on={"CreateContainer": lambda request: nri.CreateContainerResponse(...)})
    plugin.start()                      # connected, registered, configured, synchronized
    plugin.methods()                    # what it was asked, in order
    plugin.close()

As the Go stub it answers each request in a thread of its own, so that a handler may block. A handler returns its reply, None
for an empty one, or raises Refuse.
"""

from __future__ import annotations

import os
import socket
import struct
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Self

from proto import nri_pb2 as nri
from tests.harness.waiting import PATIENCE

WAIT_SECONDS = 60 * PATIENCE
SERVICE = "nri.pkg.api.v1alpha1.Runtime"
ALL = 0


class Refuse(Exception):
    """A handler's error: its gRPC code and text."""

    def __init__(self, text: str, code: int = 2) -> None:
        super().__init__(text)
        self.code = code


@dataclass(frozen=True)
class Asked:
    """A request that came in."""

    method: str
    request: Any
    timeout_nano: int
    at: float = field(default_factory=time.monotonic)

    @property
    def pod(self) -> str:
        return self.request.pod.id if hasattr(self.request, "pod") else ""

    @property
    def container(self) -> str:
        return self.request.container.id if hasattr(self.request, "container") else ""


def event_mask(*methods: str) -> int:
    """The subscription to these."""
    names = {name.replace("_", "").lower(): number for name, number in nri.Event.items()}
    return sum(1 << (names[method.lower()] - 1) for method in methods)


# ---- protobuf by hand: only what ttrpc's own messages need ----


def varint(number: int) -> bytes:
    out = bytearray()
    number &= (1 << 64) - 1
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*out, number])


def text(number: int, value: bytes) -> bytes:
    """A field of length and bytes."""
    return varint(number << 3 | 2) + varint(len(value)) + value


def fields(data: bytes) -> dict[int, Any]:
    """The last value of each field; numbers and bytes."""
    found: dict[int, Any] = {}
    at = 0

    def number() -> int:
        nonlocal at
        value = shift = 0
        while True:
            byte = data[at]
            at += 1
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return value
            shift += 7

    while at < len(data):
        key = number()
        if key & 7 == 0:
            found[key >> 3] = number()
        else:
            assert key & 7 == 2
            length = number()
            found[key >> 3] = data[at : at + length]
            at += length
    return found


class NriPlugin:
    """One plugin, connected to a socket or over a descriptor that it has inherited."""

    def __init__(
        self,
        path: str | int,
        name: str = "tester",
        index: str = "10",
        *,
        events: int = ALL,
        on: dict[str, Callable[[Any], Any]] | None = None,
    ) -> None:
        self.path, self.name, self.index, self.events = path, name, index, events
        self.on = dict(on or {})
        self.asked: list[Asked] = []
        self.pods: list[nri.PodSandbox] = []
        self.containers: list[nri.Container] = []
        self.pieces = 0
        self.configuration: nri.ConfigureRequest | None = None
        self.changed = threading.Condition()
        self.closed = False
        self._synchronized = False
        self._replies: dict[int, bytes] = {}
        self._stream = 1
        self._writing = threading.Lock()
        self._socket: socket.socket | None = None
        self._reader: threading.Thread | None = None

    # ---- life ----

    def connect(self) -> Self:
        """Connect, without a word."""
        if isinstance(self.path, int):
            self._socket = socket.socket(fileno=self.path)
        else:
            deadline = time.monotonic() + WAIT_SECONDS
            while True:
                self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
                try:
                    self._socket.connect(self.path)
                except (FileNotFoundError, ConnectionRefusedError):
                    self._socket.close()
                    assert time.monotonic() < deadline, f"no {self.path}"
                    time.sleep(0.02)
                else:
                    break
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        return self

    def register(self) -> None:
        """RegisterPlugin."""
        request = nri.RegisterPluginRequest(plugin_name=self.name, plugin_idx=self.index, NRI_version="v0.12.0")
        self.call("RegisterPlugin", request)

    def start(self) -> Self:
        """Connect, register, and wait until it is synchronized."""
        self.connect()
        self.register()
        self.wait(lambda: self._synchronized)
        return self

    def close(self) -> None:
        """Leave."""
        if self._socket is not None:
            try:
                self._socket.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass
            if self._reader is not None:
                self._reader.join(WAIT_SECONDS)
            self._socket.close()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.close()

    # ---- for tests ----

    def wait(self, condition: Callable[[], Any]) -> None:
        """Until it is so."""
        with self.changed:
            assert self.changed.wait_for(condition, WAIT_SECONDS), (self.methods(), self.closed)

    def wait_for(self, method: str, count: int = 1) -> Asked:
        """Until it was asked this so many times; the last of them."""
        self.wait(lambda: self.methods().count(method) >= count)
        return [asked for asked in self.asked if asked.method == method][count - 1]

    def methods(self, identity: str = "") -> list[str]:
        """What it was asked after the synchronization, about one pod or container."""
        return [
            a.method for a in list(self.asked) if not identity or identity in (a.container, "" if a.container else a.pod)
        ]

    def call(self, method: str, request: Any) -> bytes:
        """Ask the runtime; the payload of its answer, or Refuse."""
        with self._writing:
            stream, self._stream = self._stream, self._stream + 2
        data = text(1, SERVICE.encode()) + text(2, method.encode()) + text(3, request.SerializeToString())
        self.send(2, stream, 1, data)
        with self.changed:
            done = self.changed.wait_for(lambda: stream in self._replies or self.closed, WAIT_SECONDS)
            assert done, f"no answer to {method}"
            if stream not in self._replies:
                raise ConnectionError("closed")
            reply = fields(self._replies.pop(stream))
        status = fields(reply.get(1, b""))
        if status.get(1, 0):
            raise Refuse(status.get(2, b"").decode(), status[1])
        return reply.get(2, b"")

    def update(self, *updates: nri.ContainerUpdate, evict: tuple[str, ...] = ()) -> list[str]:
        """UpdateContainers; the ids of those that failed."""
        request = nri.UpdateContainersRequest(update=updates, evict=[nri.ContainerEviction(container_id=e) for e in evict])
        reply = nri.UpdateContainersResponse.FromString(self.call("UpdateContainers", request))
        return [one.container_id for one in reply.failed]

    # ---- bytes ----

    def send_raw(self, data: bytes) -> None:
        """Whatever a test likes."""
        assert self._socket is not None
        with self._writing:
            self._socket.sendall(data)

    def send(self, connection: int, stream: int, kind: int, data: bytes) -> None:
        """A message."""
        frame = struct.pack(">IIBB", len(data), stream, kind, 0) + data
        self.send_raw(struct.pack(">II", connection, len(frame)) + frame)

    def _exactly(self, count: int) -> bytes:
        assert self._socket is not None
        data = b""
        while len(data) < count:
            more = self._socket.recv(count - len(data))
            if not more:
                raise EOFError
            data += more
        return data

    def _read(self) -> None:
        streams: dict[int, bytearray] = {1: bytearray(), 2: bytearray()}
        try:
            while True:
                connection, length = struct.unpack(">II", self._exactly(8))
                buffer = streams[connection]
                buffer += self._exactly(length)
                while len(buffer) >= 10:
                    size, stream, kind, _ = struct.unpack(">IIBB", buffer[:10])
                    if len(buffer) < 10 + size:
                        break
                    data = bytes(buffer[10 : 10 + size])
                    del buffer[: 10 + size]
                    if connection == 2:
                        assert kind == 2
                        with self.changed:
                            self._replies[stream] = data
                            self.changed.notify_all()
                    else:
                        assert kind == 1
                        self.arrived(stream, fields(data))
        except (EOFError, OSError):
            with self.changed:
                self.closed = True
                self.changed.notify_all()

    def arrived(self, stream: int, request: dict[int, Any]) -> None:
        """A request, as ttrpc's fields."""
        threading.Thread(target=self.serve, args=(stream, request), daemon=True).start()

    def serve(self, stream: int, request: dict[int, Any]) -> None:
        """Answer it."""
        method = request[2].decode()
        try:
            payload = self._answer(method, request.get(3, b""), request.get(4, 0))
            answer = text(2, payload)
        except Refuse as error:
            answer = text(1, varint(1 << 3) + varint(error.code) + text(2, str(error).encode()))
        try:
            self.send(1, stream, 2, answer)
        except OSError:
            pass
        if method == "Synchronize":
            with self.changed:
                self._synchronized = not nri.SynchronizeRequest.FromString(request.get(3, b"")).more
                self.changed.notify_all()

    def _answer(self, method: str, payload: bytes, timeout_nano: int) -> bytes:
        kind = {"Shutdown": nri.Empty, "StateChange": nri.StateChangeEvent}.get(method) or getattr(nri, f"{method}Request")
        request = kind.FromString(payload)
        with self.changed:
            if method == "Configure":
                self.configuration = request
            elif method == "Synchronize":
                self.pods.extend(request.pods)
                self.containers.extend(request.containers)
                self.pieces += 1
            else:
                self.asked.append(Asked(method, request, timeout_nano))
            self.changed.notify_all()
        reply = self.on[method](request) if method in self.on else None
        if reply is not None:
            return reply.SerializeToString()
        if method == "Configure":
            return nri.ConfigureResponse(events=self.events).SerializeToString()
        if method == "Synchronize":
            return nri.SynchronizeResponse(more=request.more).SerializeToString()
        return b""


def main() -> None:
    """A pre-installed plugin: it writes down what it is asked, a line each, where its configuration says."""
    plugin = NriPlugin(int(os.environ["NRI_PLUGIN_SOCKET"]), os.environ["NRI_PLUGIN_NAME"], os.environ["NRI_PLUGIN_IDX"])
    plugin.connect()
    plugin.register()
    written = 0
    while not plugin.closed:
        with plugin.changed:
            plugin.changed.wait(1)
            lines = [f"{a.method} {a.container or a.pod if a.method != 'Shutdown' else ''}" for a in plugin.asked]
        if plugin.configuration is not None and (path := plugin.configuration.config.strip()):
            with open(path, "a", encoding="utf-8") as file:
                file.writelines(line.strip() + "\n" for line in lines[written:])
            written = len(lines)


if __name__ == "__main__":
    main()
