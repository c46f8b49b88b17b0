"""What a process of the copier does: select files, put them, make a directory, make one tree like another; one of them."""

from __future__ import annotations

import hashlib
import json
import os
import posixpath
import resource
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import IO, Any, Final, NoReturn

from imagesvc.containerfile.errors import ContainerfileError
from imagesvc.containerfile.instructions import Add, Copy, HereDocument
from imagesvc.tar import tar_stream, tar_writer
from imagesvc.tar.header import TarError
from imagesvc.tar.inflate import InflateError
from imagesvc.tar.tar_stream import Data, Entry
from kernel import syscalls
from kernel.descriptors import write_all
from proto.errors import CrispError
from runtime.build import archives, selection, shut_in
from runtime.build.becoming import Becoming
from runtime.build.placing import Placer
from runtime.build.selection import Item, SelectionError, View
from shim import user_lookup

_OPEN_ROOT: Final = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC
_HERE_MODE: Final = 0o644
_URL_MODE: Final = 0o600
_READ: Final = 1 << 18
_DEEPEST: Final = 1 << 13
"""Calls in each other, two for each directory; Python keeps none of them on the stack of C."""


def load() -> None:
    """Loads what is loaded late: a process that is shut in cannot any more."""
    import bz2  # noqa: F401, PLC0415
    import encodings.idna  # noqa: F401, PLC0415
    import lzma  # noqa: F401, PLC0415

    import zstandard  # noqa: F401, PLC0415


def answer(request: dict[str, Any]) -> dict[str, Any]:
    """Does it; `value` is what it has come to, `error` what is wrong, for its instruction's error."""
    try:
        return {"value": _JOBS[request["job"]](request)}
    except ContainerfileError as error:
        return {"error": error.problem}
    except CrispError as error:
        return {"error": error.message}
    except OSError as error:
        return {"error": reason(error)}
    except (SelectionError, TarError, InflateError) as error:
        return {"error": str(error)}
    except RecursionError:
        return {"error": "its directories are too deep"}


def reason(error: OSError) -> str:
    """For who reads it."""
    name = os.fsdecode(error.filename) if isinstance(error.filename, str | bytes) else ""
    return f"{name}: {error.strerror}" if name else f"cannot copy: {error.strerror}"


def _view(request: dict[str, Any]) -> View:
    tree = request["tree"]
    return selection.view_of(request["step"], tree["what"], tree["rules"], tree["keep_owners"])


def _select(request: dict[str, Any]) -> dict[str, Any]:
    step: Copy = request["step"]
    view, tree = _view(request), request["tree"]
    wanted = [source for source in step.sources if not (isinstance(step, Add) and source.startswith(selection.URLS))]
    fetched = [_fetched_item(step, index, one) for index, one in enumerate(request["fetched"])]
    if wanted and not tree["root"]:
        raise SelectionError(f"there is no {wanted[0]}: {tree['what']} has no files; only a Containerfile was given")
    items, files = [], 0
    if wanted:
        shut_in.enter(os.open(tree["root"], _OPEN_ROOT))
        for item in selection.find(step, view):
            if item.kind == "archive":
                with shut_in.open_regular("/" + item.path) as file:
                    digest, count = hashlib.file_digest(file, "sha256").hexdigest(), 1
            else:
                digest, count = selection.digest_of(item, view)
            files += count
            items.append({"kind": item.kind, "path": item.path, "name": item.name, "digest": digest})
    items += fetched
    items += [_document_item(index, document) for index, document in enumerate(step.heredocs)]
    named = len(step.sources) + len(step.heredocs)
    if named > 1 and not step.parents and not _is_directory_name(step.target):
        raise SelectionError(f"there are {named} sources, so the target is to be a directory and end with /: {step.target}/")
    return {"items": items, "files": files + len(fetched) + len(step.heredocs)}


def _is_directory_name(target: str) -> bool:
    return target.rpartition("/")[2] in ("", ".", "..")


def _fetched_item(step: Copy, index: int, fetched: dict[str, Any]) -> dict[str, Any]:
    with open(fetched["path"], "rb") as file:
        unpacked = isinstance(step, Add) and step.unpack is True and archives.is_archive(archives.Peeked(file))
        file.seek(0)
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if not unpacked and not fetched["name"] and _is_directory_name(step.target):
        raise SelectionError(f"{fetched['url']} does not say what its file is called: give the target a name")
    kind = "fetched archive" if unpacked else "fetched"
    return {"kind": kind, "path": index, "name": fetched["name"] or "file", "digest": digest}


def _document_item(index: int, document: HereDocument) -> dict[str, Any]:
    digest = hashlib.sha256(document.content.encode(errors="surrogateescape")).hexdigest()
    return {"kind": "document", "path": index, "name": document.name, "digest": digest}


def _put(request: dict[str, Any]) -> None:
    step: Copy = request["step"]
    owner = _owner(step, request["names"] or request["root"])
    # Everything that lies elsewhere is opened, and what packs is started, before this process is shut in.
    sources = list(_sources(request, _view(request)))
    shut_in.enter(os.open(request["root"], _OPEN_ROOT))
    target = _absolute(posixpath.join("/", request["workdir"], step.target))
    items = request["items"]
    alone = len(items) == 1 and items[0]["kind"] in ("file", "fetched", "document") and not step.parents
    name: bytes | None = None
    if alone and not _is_directory_name(step.target) and not os.path.isdir(target):
        target, last = posixpath.split(target)
        name = os.fsencode(last)
    placer = Placer(target, owner)
    for source in sources:
        source(placer, name)
    placer.finish()


def _absolute(path: str) -> str:
    return "/" + posixpath.normpath("/" + path).strip("/")


def _owner(step: Copy, names: str) -> tuple[int, int] | None:
    """--chown: names by the image's own files. A user without a group has the group of /etc/passwd, a number that number."""
    if not step.chown:
        return None
    user, colon, group = step.chown.partition(":")
    if colon and not (user and group):
        raise step.error(f"--chown={step.chown}: it is to be USER or USER:GROUP")
    root = os.open(names, _OPEN_ROOT)
    try:
        found = user_lookup.resolve(root, step.chown, None, (), "strict")
    except CrispError as error:
        raise step.error(f"--chown={step.chown}: {error.message}") from None
    finally:
        os.close(root)
    return found.uid, found.uid if user.isdigit() and not colon else found.gid


_Source = Callable[[Placer, bytes | None], None]
"""Writes what it has by way of a placer; the name is what a file that is alone is called."""


def _sources(request: dict[str, Any], view: View) -> Iterator[_Source]:
    step, tree = request["step"], request["tree"]
    packed: list[dict[str, Any]] = []
    for item in [*request["items"], None]:
        if item is not None and item["kind"] in ("file", "directory"):
            packed.append(item)
            continue
        if packed:
            yield _Packed(tree["root"], packed, view)
            packed = []
        if item is None:
            return
        if item["kind"] == "document":
            yield _document(step.heredocs[item["path"]], view)
        elif item["kind"] == "archive":
            root = os.open(tree["root"], _OPEN_ROOT)
            flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
            descriptor = syscalls.openat2(root, item["path"], flags, syscalls.RESOLVE_IN_ROOT)
            yield _Archive(os.fdopen(descriptor, "rb"), item)
        else:
            fetched = request["fetched"][item["path"]]
            stream = open(fetched["path"], "rb")  # noqa: SIM115  this process ends with its request
            yield _Archive(stream, item) if item["kind"] == "fetched archive" else _fetched(stream, fetched, item, view)


class _Packed:
    """Files and directories of a tree, by way of a process whose root it is."""

    def __init__(self, root: str, items: Sequence[dict[str, Any]], view: View) -> None:
        self._items = items
        reading, writing = os.pipe()
        told, telling = os.pipe()
        parent = os.getpid()
        self._pid = os.fork()
        if not self._pid:
            os.close(reading)
            _pack(root, items, view, writing, telling, parent)
        os.close(writing)
        os.close(telling)
        self._stream, self._told = os.fdopen(reading, "rb"), os.fdopen(told, "rb")

    def __call__(self, placer: Placer, name: bytes | None) -> None:
        try:
            for event in archives.events(self._stream, plain=True):
                placer.take(event, name)
        except TarError:
            self._stream.close()  # first: who packs may still be writing, and would wait for ever
            self._ended()
            raise
        self._stream.close()
        self._check()

    def _ended(self) -> list[str]:
        """The digests; why it ended, if it did not come to its end by itself."""
        told = json.loads(self._told.read() or b'{"error": "the process that reads the files was killed"}')
        if "error" in told:
            raise SelectionError(told["error"])
        digests: list[str] = told["value"]
        return digests

    def _check(self) -> None:
        """That what was packed is what was selected."""
        for item, digest in zip(self._items, self._ended(), strict=True):
            if digest != item["digest"]:
                raise SelectionError(f"{item['path'] or '.'} has changed since the build began: build once more")


def _pack(root: str, items: Sequence[dict[str, Any]], view: View, stream: int, telling: int, parent: int) -> NoReturn:
    try:
        syscalls.prctl(syscalls.PR_SET_PDEATHSIG, signal.SIGKILL)
        # Of what others write only the one who puts it may hold the other end.
        low, high = sorted((stream, telling))
        for first, end in ((3, low), (low + 1, high), (high + 1, 1 << 20)):
            os.closerange(first, end)
        if os.getppid() == parent:
            outcome = answer({"job": "pack", "root": root, "items": items, "view": view, "stream": stream})
            write_all(telling, json.dumps(outcome).encode())
    finally:
        os._exit(0)


def _packing(request: dict[str, Any]) -> list[str]:
    try:
        return _pack_items(request)
    except BrokenPipeError:
        return []  # who gets it has closed it, and knows why


def _pack_items(request: dict[str, Any]) -> list[str]:
    view, stream = request["view"], request["stream"]
    shut_in.enter(os.open(request["root"], _OPEN_ROOT))
    digests = []
    for told in request["items"]:
        digest = selection.Digest()
        for entry, path in selection.entries(Item(told["kind"], told["path"], told["name"]), view):
            digest.entry(entry)
            write_all(stream, tar_writer.header(entry))
            for piece in selection.contents(entry, path):
                digest.data(piece)
                write_all(stream, piece)
            if entry.type == tar_stream.REGULAR:
                write_all(stream, tar_writer.padding(entry.size))
        digests.append(digest.text())
    write_all(stream, tar_writer.END)
    os.close(stream)
    return digests


class _Archive:
    """An archive that is unpacked where it is to be."""

    def __init__(self, stream: IO[bytes], item: dict[str, Any]) -> None:
        self._stream = stream
        self._item = item
        self._hash = hashlib.sha256()

    def read(self, size: int, /) -> bytes:
        """The archive's next bytes, which count for its digest."""
        piece = self._stream.read(size)
        self._hash.update(piece)
        return piece

    def __call__(self, placer: Placer, _name: bytes | None) -> None:
        for event in archives.events(self):
            placer.take(event)
        while self.read(_READ):
            pass
        self._stream.close()
        if self._hash.hexdigest() != self._item["digest"]:
            raise SelectionError(f"{self._item['name']} has changed since the build began: build once more")


def _file_entry(size: int, mode: int, view: View, mtime: int) -> Entry:
    entry = tar_writer.file_entry(b"", size)
    entry.stored = size
    entry.mode = view.change(mode, False) if view.change is not None else mode
    entry.mtime = mtime
    return entry


def _document(document: HereDocument, view: View) -> _Source:
    content = document.content.encode(errors="surrogateescape")

    def put(placer: Placer, name: bytes | None) -> None:
        placer.take(_file_entry(len(content), _HERE_MODE, view, time.time_ns()), name or os.fsencode(document.name))
        if content:
            placer.take(Data(memoryview(content), last=True))

    return put


def _fetched(stream: IO[bytes], fetched: dict[str, Any], item: dict[str, Any], view: View) -> _Source:
    size = os.fstat(stream.fileno()).st_size

    def put(placer: Placer, name: bytes | None) -> None:
        placer.take(_file_entry(size, _URL_MODE, view, fetched["mtime"]), name or os.fsencode(item["name"]))
        left = size
        while left:
            piece = stream.read(min(left, _READ))
            if not piece:
                raise SelectionError(f"{fetched['url']}: its file has become shorter")
            left -= len(piece)
            placer.take(Data(memoryview(piece), last=not left))

    return put


def _directory(request: dict[str, Any]) -> bool:
    shut_in.enter(os.open(request["root"], _OPEN_ROOT))
    path = _absolute(request["path"])
    if os.path.isdir(path):
        return False
    Placer(path)
    return True


def _become(request: dict[str, Any]) -> bool:
    # What RUN has made may be deep, and two directories are open for each level. This process ends with its request.
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    sys.setrecursionlimit(_DEEPEST)
    tree, wanted = (os.open(request[name], os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC) for name in ("root", "wanted"))
    becoming = Becoming(tree, wanted, request["newest"])
    becoming.run()
    return becoming.changed


_JOBS: Final[dict[str, Callable[[dict[str, Any]], Any]]] = {
    "select": _select,
    "put": _put,
    "pack": _packing,
    "directory": _directory,
    "become": _become,
}
