"""COPY, ADD and WORKDIR: files that are selected in one tree and put into another, by processes that are shut in there.

    command ──fork──▶ copier ──fork──▶ a job: select     its root is the source: paths, wildcards, ignore rules, digest
                         ╰────fork──▶ a job: put        its root is the tree that gets the files
                                         ╰─fork─▶ packs an archive; its root is the source
    The copier has one thread and holds nothing of the command: it is forked before the command has threads or connections.

What is put is what was selected, or an error: the digest is made once more, of the bytes that are written.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import pickle
import signal
import socket
import threading
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Final, NoReturn, Self

from imagesvc.containerfile.ignore import IgnoreRules
from imagesvc.containerfile.instructions import Copy, Instruction
from kernel import syscalls
from proto.errors import Code, CrispError
from runtime.build import jobs

_PIECE: Final = 1 << 16


@dataclass(frozen=True)
class Tree:
    """Where files come from."""

    root: str
    """A directory, "" for none (then only here-documents and URLs can be copied)."""
    what: str
    """For messages: `the context`, `stage build`, `image debian:12`."""
    rules: IgnoreRules = field(default_factory=IgnoreRules)
    keep_owners: bool = True
    """Files keep their owners (COPY --from), or become root's (the context)."""


@dataclass(frozen=True)
class Fetched:
    """A URL of ADD: the file in which its content is, and what it is called. `mtime` in nanoseconds since the epoch."""

    url: str
    path: str
    name: str
    mtime: int


@dataclass(frozen=True)
class Selection:
    """What a COPY or ADD has chosen."""

    digest: str
    """sha256:… of names, kinds, modes, owners, contents and targets of links; not of times."""
    files: int
    """How many there are, directories included."""
    step: Copy
    source: Tree
    fetched: tuple[Fetched, ...]
    items: tuple[dict[str, Any], ...]


class Copier:
    """The process that does it. Make it in the main thread before there are others; its methods may be called by any."""

    def __init__(self) -> None:
        jobs.load()
        self._control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._lock = threading.Lock()
        parent = os.getpid()
        self._pid = os.fork()
        if not self._pid:
            _serve(theirs, parent)
        theirs.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Ends it, and what it still does: who waits for that gets an error. From any thread, and more than once."""
        with self._lock:
            pid, self._pid = self._pid, 0
            self._control.close()
        if pid:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)

    def select(self, step: Copy, source: Tree, fetched: Sequence[Fetched] = ()) -> Selection:
        """Finds what an expanded COPY or ADD means. Blocks. ContainerfileError where it means nothing, or must not."""
        answer = self._call(step, {"job": "select", "tree": _told(source), "fetched": [_told(one) for one in fetched]})
        items = tuple(answer["items"])
        parts = [[item["kind"], item["name"], item["digest"]] for item in items]
        digest = "sha256:" + hashlib.sha256(json.dumps(parts).encode()).hexdigest()
        return Selection(digest, answer["files"], step, source, tuple(fetched), items)

    def put(self, selection: Selection, root: str, names: str, workdir: str) -> None:
        """Writes the files of a selection. Blocks.

        Args:
            root: the directory of the tree that gets them.
            names: the directory of the tree in whose /etc the names of --chown are looked up; "" for none.
            workdir: the image's working directory, for a relative target.

        Raises:
            ContainerfileError: the files cannot be put there, or have changed since they were selected.
        """
        request = {
            "job": "put",
            "tree": _told(selection.source),
            "fetched": [_told(one) for one in selection.fetched],
            "items": list(selection.items),
            "root": root,
            "names": names,
            "workdir": workdir,
        }
        self._call(selection.step, request)

    def make_directory(self, step: Instruction, root: str, path: str) -> bool:
        """Makes a directory with its parents (root's, 0755) where there is none: WORKDIR. Whether it made one. Blocks."""
        return bool(self._call(step, {"job": "directory", "root": root, "path": path}))

    def become(self, step: Instruction, root: str, wanted: str, newest: int | None = None) -> bool:
        """Makes the tree in one directory like that in another, and touches what differs alone. Whether anything. Blocks.

        `newest`: see becoming.py.
        """
        return bool(self._call(step, {"job": "become", "root": root, "wanted": wanted, "newest": newest}))

    def digest(self, step: Instruction, source: Tree, path: str) -> str:
        """Digest of a file, or of a directory with all that is in it: the source of a RUN --mount=type=bind. Blocks."""
        return self.select(Copy(at=step.at, text=step.text, sources=(path or ".",), target="/"), source).digest

    def _call(self, step: Instruction, request: dict[str, Any]) -> Any:
        """Has a job done and waits for it."""
        ours, theirs = socket.socketpair()
        answer: dict[str, Any] = {}
        with ours, suppress(OSError, ValueError):  # what a killed process has told is no JSON
            with theirs, self._lock:
                socket.send_fds(self._control, [b"j"], [theirs.fileno()])
            ours.sendall(pickle.dumps({**request, "step": step}))
            ours.shutdown(socket.SHUT_WR)
            answer = json.loads(_read_all(ours) or b"{}")
        if "error" in answer:
            raise step.error(answer["error"])
        if "value" not in answer:
            raise CrispError(Code.ABORTED, f"{step.at}: {step.keyword}: the process that copies its files was killed")
        return answer["value"]


def _told(value: Tree | Fetched) -> dict[str, Any]:
    return {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}


def _read_all(connection: socket.socket) -> bytes:
    pieces = []
    while piece := connection.recv(_PIECE):
        pieces.append(piece)
    return b"".join(pieces)


def _serve(control: socket.socket, parent: int) -> NoReturn:
    """The copier's life: a process for each request, until the command has no more."""
    try:
        syscalls.prctl(syscalls.PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:
            os._exit(0)
        for number in (signal.SIGINT, signal.SIGQUIT, signal.SIGCHLD):
            signal.signal(number, signal.SIG_IGN)  # a terminal's are the command's to answer; children are not waited for
        for number in (signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_DFL)
        nothing = os.open(os.devnull, os.O_RDWR)
        for descriptor in (0, 1):
            os.dup2(nothing, descriptor)
        here = control.fileno()
        os.closerange(3, here)
        os.closerange(here + 1, 1 << 20)
        while True:
            data, descriptors, _flags, _address = socket.recv_fds(control, 1, 1)
            if not data:
                os._exit(0)
            copier = os.getpid()
            if not os.fork():
                control.close()
                _work(socket.socket(fileno=descriptors[0]), copier)
            os.close(descriptors[0])
    finally:
        os._exit(1)


def _work(connection: socket.socket, copier: int) -> NoReturn:
    """A job's life."""
    try:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        syscalls.prctl(syscalls.PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() == copier:
            request = pickle.loads(_read_all(connection))  # noqa: S301  from ourselves
            connection.sendall(json.dumps(jobs.answer(request)).encode())
    finally:
        os._exit(0)
