"""`crisp logs`: what a container has written, from the log files that kubelets and crictl read too."""

from __future__ import annotations

import glob
import gzip
import os
import re
import time
import zlib
from collections.abc import Iterable, Iterator
from contextlib import suppress
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final, NamedTuple

import click

from kernel.descriptors import write_all
from proto.errors import Code
from runtime.cli import completion
from runtime.cli.lookup import Node
from runtime.cli.output import errors, fail
from runtime.client import CallError, Client, patiently

if TYPE_CHECKING:
    from proto import api_pb2 as cri

LOOK_SECONDS: Final = 0.1
_ROTATED: Final = re.compile(r"\.\d{8}-\d{6}(\.gz)?")
"""What a kubelet adds to a name; another ending is of a file that it has not packed to its end."""
_DAMAGED: Final = (EOFError, zlib.error, gzip.BadGzipFile)
_UNITS: Final = {"s": 1, "m": 60, "h": 3600, "d": 86400}


class Line(NamedTuple):
    """A line of a log: its time as written there, its stream, whether it is whole, and its bytes."""

    time: bytes
    stream: bytes
    whole: bool
    text: bytes


@click.command("logs")
@click.argument("container", shell_complete=completion.containers)
@click.option("--follow", "-f", is_flag=True, help="Go on with what comes, until the container has ended.")
@click.option("--tail", "-n", "tail", default="all", metavar="LINES", help="Only the last ones.")
@click.option("--since", default="", metavar="TIME", help="Not what is older: 10m, 1h30m, or 2026-01-31T12:00:00Z.")
@click.option("--timestamps", "-t", is_flag=True, help="Each line's time before it.")
@click.pass_obj
def command(socket_path: str, container: str, follow: bool, tail: str, since: str, timestamps: bool) -> None:
    """Show a container's output; its standard error goes to ours."""
    from proto import api_pb2 as cri  # noqa: PLC0415  --help needs no protobuf

    if tail != "all" and not re.fullmatch(r"\d{1,9}", tail, re.ASCII):
        fail(f"--tail {tail}: neither a number nor all", 2)
    first = moment(since) if since else b""
    with errors(), Client(socket_path) as client:
        found = Node(client).container(container)
        request = cri.ContainerStatusRequest(container_id=found.id)
        path = client.runtime.ContainerStatus(request).status.log_path
        if not path:
            fail(f"{container} has no log: its pod was made without a directory for logs")

        def running() -> bool:
            try:
                state: cri.ContainerState = patiently(lambda: client.runtime.ContainerStatus(request)).status.state
            except CallError as error:
                if error.code is Code.NOT_FOUND:
                    return False  # it has ended, and was removed
                raise
            return state in (cri.CONTAINER_CREATED, cri.CONTAINER_RUNNING)

        skipped = 0
        if tail != "all":
            with _Log(path) as log:  # read twice, for what is kept meanwhile has no bound
                skipped = _begun(line for line in log.past() if line.time >= first) - int(tail)
        with _Log(path) as log:
            printer = _Printer(timestamps)
            printer.print(_after(skipped, (line for line in log.past() if line.time >= first)))
            while follow:
                ending = not running()
                printer.print(log.more())
                if ending:
                    return
                time.sleep(LOOK_SECONDS)


class _Log:
    """A log and those that it was before a kubelet rotated it: FILE.<time> and, older, FILE.<time>.gz."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._file = open(path, "rb")  # noqa: SIM115  closed by `__exit__`, or for the one that follows it
        self._pending = b""

    def __enter__(self) -> _Log:
        return self

    def __exit__(self, *_error: object) -> None:
        self._file.close()

    def past(self) -> Iterator[Line]:
        """All lines until now."""
        names = set(glob.glob(glob.escape(self._path) + ".*"))
        for name in sorted(filter(lambda name: _ROTATED.fullmatch(name, len(self._path)), names)):
            if f"{name}.gz" in names:
                continue  # packed already, and about to go
            with (
                suppress(FileNotFoundError, *_DAMAGED),
                gzip.open(name) if name.endswith(".gz") else open(name, "rb") as old,
            ):
                yield from filter(None, map(_line, old))
        yield from self.more()

    def more(self) -> Iterator[Line]:
        """The lines that have come since."""
        while True:
            yield from self._rest()
            try:
                same = os.stat(self._path).st_ino == os.fstat(self._file.fileno()).st_ino
            except FileNotFoundError:
                same = True  # renamed, and the next one is not there yet
            if same:
                return
            yield from self._rest()  # what was written between the last look and the rename
            self._file.close()
            self._file, self._pending = open(self._path, "rb"), b""  # noqa: SIM115

    def _rest(self) -> Iterator[Line]:
        while chunk := self._file.read(1 << 16):
            *lines, self._pending = (self._pending + chunk).split(b"\n")
            yield from filter(None, map(_line, lines))


def _line(raw: bytes) -> Line | None:
    parts = raw.rstrip(b"\n").split(b" ", 3)
    return Line(parts[0], parts[1], parts[2] != b"P", parts[3]) if len(parts) == 4 else None


def _begun(lines: Iterable[Line]) -> int:
    """How many lines there are; one has pieces, and need not be whole yet."""
    return sum(1 for _, first in _firsts(lines) if first)


def _after(count: int, lines: Iterable[Line]) -> Iterator[Line]:
    """Without the first lines, as many as that, and without all of their pieces."""
    dropped: set[bytes] = set()
    """Streams whose present line is one of these."""
    for line, first in _firsts(lines):
        if first and count > 0:
            count -= 1
            dropped.add(line.stream)
        elif first:
            dropped.discard(line.stream)
        if line.stream not in dropped:
            yield line


def _firsts(lines: Iterable[Line]) -> Iterator[tuple[Line, bool]]:
    """Each piece, and whether its line begins with it."""
    begun: set[bytes] = set()
    for line in lines:
        yield line, line.stream not in begun
        (begun.discard if line.whole else begun.add)(line.stream)


class _Printer:
    """Writes lines to our own streams."""

    def __init__(self, timestamps: bool) -> None:
        self._timestamps = timestamps
        self._begun: set[bytes] = set()

    def print(self, lines: Iterable[Line]) -> None:
        """As the container wrote them: a piece without the end of its line has none."""
        for line in lines:
            text = line.text + b"\n" if line.whole else line.text
            if self._timestamps and line.stream not in self._begun:
                text = line.time + b" " + text
            (self._begun.discard if line.whole else self._begun.add)(line.stream)
            write_all(1 if line.stream == b"stdout" else 2, text)


def moment(text: str) -> bytes:
    """A duration before now or a time in UTC, as the log writes it. Ends the command if it is neither."""
    try:
        return _moment(text)
    except (ValueError, OverflowError):
        fail(f"--since {text}: neither a duration such as 1h30m nor a time such as 2026-01-31T12:00:00Z", 2)


def _moment(text: str) -> bytes:
    if re.fullmatch(r"(\d+(\.\d+)?[smhd])+", text):
        ago = sum(float(number) * _UNITS[unit] for number, _, unit in re.findall(r"(\d+(\.\d+)?)([smhd])", text))
        return _stamp(time.time() - ago)
    if re.fullmatch(r"\d+(\.\d+)?", text):  # since 1970
        return _stamp(float(text))
    return _stamp(datetime.fromisoformat(text).timestamp())  # without a zone it is this node's


def _stamp(seconds: float) -> bytes:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S.%f000Z").encode()
