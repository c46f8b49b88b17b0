"""Client side of the socket, for the `crisp` command: what it does goes through the same door as the kubelet's calls.

    with Client(socket_path) as client:
        client.runtime.ListContainers(request)              the reply
        client.runtime.PodSandboxStatus.each(requests)      a reply or a CallError for each; all are asked for at once
        client.runtime.RemoveContainer.behind(request)      goes on by itself, and ends with the client
        for step in client.admin.PullImage(request): ...    of a method with several answers

A call has a connection for itself while it lasts, and the next one gets it: threads do not meet.
"""

from __future__ import annotations

import os
import select
import socket
import threading
import time
from contextlib import suppress
from functools import cached_property
from typing import TYPE_CHECKING, Any, Final, TypeVar

from google.protobuf.message import DecodeError
from google.protobuf.message_factory import GetMessageClass

from proto import api_pb2
from proto.errors import Code, CrispError
from proto.grpc_client import Connection, Event, Message
from runtime import limits

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from types import TracebackType
    from typing import Self

    from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor

T = TypeVar("T")

READ_BYTES: Final = 1 << 18
LOOK_SECONDS: Final = 0.1
"""For which the kernel is waited for at once: Python does not see a signal that comes just before."""

AT_ONCE: Final = 100
"""Calls under way on one connection: no server should take fewer (RFC 7540, 6.5.2)."""


class CallError(CrispError):
    """A call has failed: the daemon said so, or there is none."""


class Client:
    """A daemon; use it as a context manager, whose end is that of all calls. Any thread may call."""

    def __init__(self, socket_path: str) -> None:
        """UNAVAILABLE if there is no socket."""
        if not os.path.exists(socket_path):
            raise CrispError(
                Code.UNAVAILABLE,
                f"no daemon at {socket_path}: start one with `crisp serve`, or name its --socket",
            )
        self._lines = _Lines(os.path.abspath(socket_path))
        services = api_pb2.DESCRIPTOR.services_by_name
        self.runtime: Any = _Service(self._lines, services["RuntimeService"])
        self.images: Any = _Service(self._lines, services["ImageService"])

    @cached_property
    def admin(self) -> Any:
        """What CRI has no calls for."""
        from proto import admin_pb2  # noqa: PLC0415  most commands do without

        return _Service(self._lines, admin_pb2.DESCRIPTOR.services_by_name["Admin"])

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._lines.close()


class _Service:
    """Its methods by their names."""

    def __init__(self, lines: _Lines, descriptor: ServiceDescriptor) -> None:
        self._lines, self._descriptor = lines, descriptor

    def __getattr__(self, name: str) -> _Method:
        method = self._descriptor.methods_by_name.get(name)
        if method is None:
            raise AttributeError(name)
        found = _Method(self._lines, method)
        setattr(self, name, found)
        return found


class _Method:
    """A call that can be made."""

    def __init__(self, lines: _Lines, method: MethodDescriptor) -> None:
        self._lines, self._streams = lines, method.server_streaming
        self._path = f"/{method.containing_service.full_name}/{method.name}"
        self._reply = GetMessageClass(method.output_type)

    def __call__(self, request: Any, timeout: float | None = None) -> Any:
        """The reply, or an iterator over several. CallError, DEADLINE_EXCEEDED after `timeout` seconds without the reply."""
        if self._streams:
            return Replies(self._lines, self._path, request, self._read)
        (found,) = self.each((request,), timeout)
        if isinstance(found, CallError):
            raise found
        return found

    def each(self, requests: Iterable[Any], timeout: float | None = None) -> Iterator[Any]:
        """For each request its reply, or the CallError that it came to; in their order."""
        waiting = [*requests]
        while waiting:
            some, waiting = waiting[:AT_ONCE], waiting[AT_ONCE:]
            yield from self._some(some, timeout)

    def behind(self, request: Any) -> None:
        """Make the call beside what the caller does; nobody hears how it ends."""

        def call() -> None:
            with suppress(CallError):
                self(request)

        threading.Thread(target=call, daemon=True).start()

    def _some(self, requests: list[Any], timeout: float | None) -> list[Any]:
        found: dict[int, Any] = {}
        deadline = time.monotonic() + timeout if timeout is not None else None
        line = self._lines.take()
        try:
            numbers = [line.connection.call(self._path, request.SerializeToString(), timeout) for request in requests]
            while line.connection.calls:
                for event in line.receive(deadline):
                    if isinstance(event, Message):
                        found[event.stream] = self._read(event.data)
                    elif event.code is not None:
                        found[event.stream] = CallError(event.code, event.text or event.code.name)
        finally:
            self._lines.give_back(line)
        missing = CallError(Code.INTERNAL, "there is no answer")
        return [found.get(number, missing) for number in numbers]

    def _read(self, data: bytes) -> Any:
        try:
            return self._reply.FromString(data)
        except DecodeError:
            raise CallError(Code.INTERNAL, f"the answer is no {self._reply.DESCRIPTOR.name}") from None


class Replies:
    """The answers of one call, as they come. Its connection is for nothing else, since `cancel` ends it."""

    def __init__(self, lines: _Lines, path: str, request: Any, read: Callable[[bytes], Any]) -> None:
        self._lines, self._read, self._line = lines, read, lines.take()
        self._line.connection.call(path, request.SerializeToString())
        self._line.send()
        self._replies = self._all()

    def _all(self) -> Iterator[Any]:
        line = self._line
        try:
            while line.connection.calls:
                for event in line.receive(None):
                    if isinstance(event, Message):
                        yield self._read(event.data)
                    elif event.code is not None:
                        raise CallError(event.code, event.text or event.code.name)
        finally:
            self._lines.discard(line)

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Any:
        """The next one. CallError, UNAVAILABLE too if that is what `cancel` has done."""
        return next(self._replies)

    def cancel(self) -> None:
        """Nobody wants more; from any thread."""
        self._lines.end(self._line)


class _Lines:
    """Connections to a daemon: those that no call has just now, and all that are to be closed."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._lock = threading.RLock()  # replies that nobody reads to their end are given up at any time, with their line
        self._idle: list[_Line] = []
        self._open: set[_Line] = set()
        self._closed = False

    def take(self) -> _Line:
        """A connection for one call."""
        with self._lock:
            while self._idle:
                line = self._idle.pop()
                if line.is_alive():
                    return line
                self.discard(line)
        line = _Line(self._path)
        with self._lock:
            self._open.add(line)
            if self._closed:
                line.end()
        return line

    def give_back(self, line: _Line) -> None:
        """The call is over, well or not; one that was broken off ends with the connection."""
        with self._lock:
            if line.connection.closed or line.connection.calls or self._closed:
                self.discard(line)
            else:
                self._idle.append(line)

    def discard(self, line: _Line) -> None:
        """Nobody waits for it any more."""
        with self._lock:
            self._open.discard(line)
            line.close()

    def end(self, line: _Line) -> None:
        """End the calls of one that somebody may wait for, in whatever thread."""
        with self._lock:
            if line in self._open:
                line.end()

    def close(self) -> None:
        """End all calls."""
        with self._lock:
            self._closed = True
            while self._idle:
                self.discard(self._idle.pop())
            for line in [*self._open]:
                line.end()


class _Line:
    """One connection to a daemon."""

    def __init__(self, path: str) -> None:
        self.connection = Connection(limits.GRPC_MESSAGE_BYTES)
        self._unsent = bytearray()
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.setblocking(False)
        try:
            self._socket.connect(path)
        except OSError as error:
            self._socket.close()
            raise CallError(Code.UNAVAILABLE, f"no daemon answers at {path}: {error.strerror or error}") from None
        self._poll = select.poll()

    def is_alive(self) -> bool:
        """Whether the daemon has not ended it since the last call."""
        try:
            self.connection.receive(self._socket.recv(READ_BYTES))
        except BlockingIOError:
            return True
        except OSError:
            return False
        return not self.connection.closed

    def send(self) -> None:
        """What is to be sent, as much of it as the daemon takes now."""
        self._unsent += self.connection.to_send()
        try:
            while self._unsent:
                del self._unsent[: self._socket.send(self._unsent)]
        except BlockingIOError:
            pass
        except OSError:  # it has gone; what it said before that can be read
            self._unsent.clear()

    def receive(self, deadline: float | None) -> list[Event]:
        """Send what is to be sent, and wait a while for what comes; CallError at the deadline, a time of time.monotonic."""
        left = LOOK_SECONDS if deadline is None else min(LOOK_SECONDS, deadline - time.monotonic())
        if left <= 0:
            raise CallError(Code.DEADLINE_EXCEEDED, "the daemon has not answered in time")
        self.send()
        self._poll.register(self._socket, select.POLLIN | (select.POLLOUT if self._unsent else 0))
        self._poll.poll(left * 1000)
        try:
            return self.connection.receive(self._socket.recv(READ_BYTES))
        except BlockingIOError:
            return []
        except OSError:
            return self.connection.receive(b"")

    def end(self) -> None:
        """Whoever waits for it is told so."""
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Nobody waits for it any more."""
        self._socket.close()


AWAY_SECONDS: Final = 60.0
"""For which a daemon may be away, being started anew, until a command that waits for something gives it up."""
_AWAY: Final = (Code.UNAVAILABLE, Code.CANCELLED)
"""What calls end with whose daemon has gone, and those to where none is."""


def patiently(call: Callable[[], T], seconds: float = AWAY_SECONDS) -> T:
    """Make a call that may be made again, until a daemon answers."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            return call()
        except CallError as error:
            if not is_away(error) or time.monotonic() > deadline:
                raise
        time.sleep(LOOK_SECONDS)


def is_away(error: CrispError) -> bool:
    """Whether a call has failed for want of a daemon."""
    return error.code in _AWAY
