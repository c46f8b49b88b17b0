"""What a worker child does: one job, named by its request, with its answer as a JSON-able dict.

    unpack    a layer's tar, compressed or not, into a directory or an image    the channel says how far the file has come
    complete  the tree of an image whose layer depends on those below it, once these are known
    settle    removes a layer's whiteouts that hide nothing, once the layers below are known
    remove    directory trees, and layers' files, which are unmounted first; `reconcile` unmounts those that are gone
    rebuild   the tar that a layer came from: its digest, or a compressed blob of it
    check     whether a layer's file is what it was
    protect   switches fs-verity on for layers' files
    pack      a directory as a new layer's compressed blob
    export    an archive of blobs, documents and rebuilt layers
    measure   disk taken by a directory
    take      the files of a checkpoint, and `changes`: its writable layer (checkpoint_files.py)

Answers are {"ok": {...}} or {"error": kind, "message": text, ...}. The daemon's side is pool.py.
"""

from __future__ import annotations

import errno
import hashlib
import os
import resource
import shutil
import socket
import struct
import traceback
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

from imagesvc.erofs import layer_file
from imagesvc.limits import KIB, MIB, Limits
from imagesvc.tar import inflate, skeleton, tar_writer
from imagesvc.tar.header import TarError
from imagesvc.tar.tar_stream import Data, Entry, Tail, TarReader
from imagesvc.worker import checkpoint_files, pack, unpack, waiting, whiteouts
from imagesvc.worker.layer_directory import LayerDirectory
from imagesvc.worker.layer_image import LayerImage
from imagesvc.worker.merged_view import MergedView
from kernel import capabilities, removal, verity
from kernel.disk_usage import Walk
from shim import layer_mounts

AVAILABLE = struct.Struct("<QQ")
"""Daemon to child: bytes of the file that may be read, and its whole size."""
PROGRESS = struct.Struct("<Q")
"""Child to daemon: compressed bytes worked on so far. Told from an answer by its length."""
_READ = 128 * KIB
_WHITEOUTS = "whiteouts"
"""File beside `fs`: the paths of a layer's whiteouts that are still to be looked at, NUL between them."""
_SCRATCH, _EMPTY = ".skeleton", ".root"
"""Beside a layer's file while a job makes it, each for a moment."""
_TEXT, _TRACE = 8192, 16384
"""Bytes that an answer tells of a failure, and of its trace: it has to fit into one message."""
_REPORT_EVERY = 8 * MIB
_UNPACKING = frozenset(
    f"CAP_{name}" for name in ("CHOWN", "DAC_OVERRIDE", "FOWNER", "FSETID", "MKNOD", "SETFCAP", "SYS_ADMIN")
)
"""What a process that reads an image's bytes needs to write them; SYS_ADMIN is for the trusted.overlay attributes."""
_READING = frozenset(("CAP_DAC_OVERRIDE", "CAP_SYS_ADMIN"))
"""What it needs to copy something from a lower layer, trusted attributes too; it writes to open files alone."""
_NEW_FILE = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


def run(request: Mapping[str, Any], channel: socket.socket) -> dict[str, Any]:
    """Does the job; failures that its input or the disk explain are answers."""
    try:
        return {"ok": _JOBS[request["job"]](request, channel)}
    except (TarError, inflate.InflateError, ValueError) as error:
        return {"error": "bad", "message": _short(f"{error}{_where(error)}")}
    except unpack.NeedsLower as error:
        return {"error": "needs_lower", "message": str(error)}
    except OSError as error:
        if error.errno in (errno.EPIPE, errno.ECONNRESET):
            raise
        name = os.fsdecode(error.filename) if isinstance(error.filename, (str, bytes)) else ""
        message = (error.strerror or str(error)) + _where(error)
        return {"error": "os", "errno": error.errno or 0, "message": _short(message), "path": _short(name)}
    except Exception as error:
        # A defect, or what nobody has thought of: an answer all the same, and the trace for the log.
        message = _short(f"{type(error).__name__}: {error}{_where(error)}")
        return {"error": "defect", "message": message, "trace": traceback.format_exc()[-_TRACE:]}


def _where(error: BaseException) -> str:
    """The entry at which it happened, which `_apply` has noted."""
    return "".join(f" ({note})" for note in getattr(error, "__notes__", []))


def _short(text: str) -> str:
    """As it fits into one message, whatever a name is made of."""
    return text.encode(errors="backslashreplace")[:_TEXT].decode(errors="replace")


def _unpack(request: Mapping[str, Any], channel: socket.socket) -> dict[str, Any]:
    """Unpacks `file` (from `offset`) into `target`: a directory, or the new file of an image, as `form` says."""
    return (_unpack_image if request.get("form") == "erofs" else _unpack_directory)(request, channel)


def _unpack_directory(request: Mapping[str, Any], channel: socket.socket) -> dict[str, Any]:
    """Into `target`/fs, beside which the skeleton is written."""
    limits = Limits(**request["limits"])
    source = _GrowingFile(request["file"], request["offset"], channel)
    bones = skeleton.SkeletonWriter(os.path.join(request["target"], "skeleton"))
    lower = None if request["lower"] is None else _open_lower(request["lower"])
    root = os.path.join(request["target"], "fs")
    os.umask(0o022)
    os.mkdir(root, 0o755)
    # Before chroot: afterwards there is nothing to import zstandard from.
    reader = inflate.open_reader(source.read)
    meter = _Meter(limits, source)
    writer = unpack.LayerWriter(LayerDirectory(bones), lower, bones, limits)
    with open(os.path.join(request["target"], _WHITEOUTS), "wb") as pending:
        os.umask(0)
        os.chroot(root)
        os.chdir("/")
        capabilities.keep(_UNPACKING)
        _apply(reader.read, writer, bones, meter.update)
        pending.write(b"\0".join(writer.whiteouts))
    source.finish()
    return _answer(writer) | {"diff_id": meter.diff_id(), "inflated": meter.total, "skeleton": bones.close()}


def _unpack_image(request: Mapping[str, Any], channel: socket.socket) -> dict[str, Any]:
    """Into the file `target`: image, skeleton, and an end without a document (layer_file.py).

    `patient`: where layers below are needed and not known, the answer says at which path the layer `waits` for `complete`.
    """
    limits = Limits(**request["limits"])
    source = _GrowingFile(request["file"], request["offset"], channel)
    lower = None if request["lower"] is None else _open_lower(request["lower"])
    descriptor = os.open(request["target"], _NEW_FILE, 0o600)
    scratch = request["target"] + _SCRATCH
    with open(scratch, "x+b") as bones_file:
        os.unlink(scratch)
        bones = skeleton.SkeletonWriter(bones_file)
        reader = inflate.open_reader(source.read)
        meter = _Meter(limits, source)
        image = LayerImage(request["target"], descriptor, bones)
        patient = waiting.PatientWriter(image, bones, limits) if request.get("patient") else None
        writer = unpack.LayerWriter(image, lower, bones, limits) if patient is None else patient.tree
        _see_nothing(request["target"] + _EMPTY)
        capabilities.keep(_READING if lower is not None else frozenset())

        def read() -> bytes:
            image.drain()
            return reader.read()

        _apply(read, patient or writer, bones, meter.update)
        bones.close()
        bones_file.flush()
        source.finish()
        written = _end_file(descriptor, bones_file.fileno(), image, writer)
    return (
        _answer(writer)
        | written
        | {
            "diff_id": meter.diff_id(),
            "inflated": meter.total,
            "waits": patient.waits if patient is not None else "",
        }
    )


def _complete(request: Mapping[str, Any], channel: socket.socket) -> dict[str, Any]:
    """Makes the tree of `target`, whose `unpack` has answered that it waits, upon the layers `lower`."""
    limits = Limits(**request["limits"])
    lower = _open_lower(request["lower"])
    descriptor = os.open(request["target"], os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
    trailer = layer_file.read_from(descriptor)
    scratch = request["target"] + _SCRATCH
    with open(scratch, "x+b") as bones_file:
        os.unlink(scratch)
        bones = bones_file.fileno()
        image = waiting.KnownFiles(request["target"], descriptor, trailer, bones)
        _see_nothing(request["target"] + _EMPTY)
        capabilities.keep(_READING)
        _append(bones, 0, descriptor, trailer.skeleton_offset, trailer.skeleton_bytes)
        os.ftruncate(descriptor, trailer.image_bytes)
        writer = waiting.complete(image, lower, limits)
        return _answer(writer) | _end_file(descriptor, bones, image, writer)


def _end_file(descriptor: int, bones: int, image: LayerImage, writer: unpack.LayerWriter) -> dict[str, Any]:
    """Puts behind the image what belongs there, and says what the file is."""
    os.ftruncate(descriptor, image.size)
    size = os.fstat(bones).st_size
    _append(descriptor, image.size, bones, 0, size)
    digest = layer_file.digest_of(descriptor, image.metadata)
    pending = b"\0".join(writer.whiteouts)
    if len(pending) > layer_file.MAX_WHITEOUTS:
        raise TarError(f"the paths of its whiteouts take more than {layer_file.MAX_WHITEOUTS // MIB} MiB")
    layer_file.write(descriptor, layer_file.Trailer(image.size, size, image.metadata, pending, b"", digest))
    root = image.root
    return {"bytes": image.disk_bytes, "inodes": 1, "skeleton": True, "skeleton_bytes": size} | {
        "root": [root.mode, root.uid, root.gid]
    }


def _see_nothing(directory: str) -> None:
    """Makes an empty directory, which is gone already, this process's root."""
    os.mkdir(directory, 0o700)
    os.chdir(directory)
    os.rmdir(directory)
    os.chroot(".")


def _append(descriptor: int, offset: int, source: int, start: int, size: int) -> None:
    """Puts a part of one file at an offset of another."""
    os.lseek(descriptor, offset, os.SEEK_SET)
    end = start + size
    while start < end:
        copied = os.sendfile(descriptor, source, start, end - start)
        if not copied:
            raise ValueError("a file is shorter than it was")
        start += copied


def _answer(writer: unpack.LayerWriter) -> dict[str, Any]:
    return {
        "bytes": writer.bytes,
        "inodes": writer.inodes,
        "entries": writer.entries,
        "depends": writer.depends,
        "attributed": writer.attributed,
        "unsettled": bool(writer.whiteouts),
        "has_root": writer.has_root,
    }


def _apply(
    read: Callable[[], bytes],
    writer: unpack.LayerWriter | waiting.PatientWriter,
    bones: skeleton.SkeletonWriter,
    seen: Callable[[bytes], None],
) -> None:
    """Reads a whole archive and applies it; `seen` gets every byte of it, for the diff id and the limits."""
    reader = TarReader()
    next_event = reader.next_event
    last = b""
    while chunk := read():
        seen(chunk)
        reader.receive_data(chunk)
        while (event := next_event()) is not None:
            if type(event) is Entry:
                last = event.name
                try:
                    writer.entry(event)
                except (TarError, unpack.NeedsLower):
                    raise  # they name it themselves
                except Exception as error:
                    error.add_note(f"at the entry {event.name[:200]!r}")
                    raise
            elif type(event) is Data:
                try:
                    writer.data(event)
                except Exception as error:
                    error.add_note(f"at the entry {last[:200]!r}")
                    raise
            elif type(event) is Tail:
                bones.raw(event.raw)
    reader.close()
    writer.finish()


def _settle(request: Mapping[str, Any], channel: socket.socket) -> dict[str, Any]:
    """Finishes a layer that was unpacked alone and has whiteouts."""
    lower = _open_lower(request["lower"])
    if request["target"].endswith(layer_file.SUFFIX):
        descriptor = os.open(request["target"], os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
        _see_nothing(request["target"] + _EMPTY)
        capabilities.keep(_READING)
        whiteouts.settle_file(lower, descriptor)
        return {}
    path = os.path.join(request["target"], _WHITEOUTS)
    with open(path, "rb") as stream:
        paths = stream.read().split(b"\0")
    os.unlink(path)
    os.chroot(os.path.join(request["target"], "fs"))
    os.chdir("/")
    capabilities.keep(_UNPACKING)
    whiteouts.settle(lower, paths)
    return {}


def _open_lower(layers: list[str]) -> MergedView:
    """A view of layers, directories and files, topmost first, that outlasts chroot."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(hard, 1024)), hard))
    return MergedView([layer_mounts.open_layer(layer) for layer in layers])


class _GrowingFile:
    """A file that is read while it is downloaded. Its end is where the daemon says that it is."""

    def __init__(self, path: str, offset: int, channel: socket.socket) -> None:
        self._file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        self._start = self._offset = offset
        self._available = 0
        self._size = -1
        self._channel = channel
        self._reported = 0

    @property
    def consumed(self) -> int:
        """Compressed bytes read so far."""
        return self._offset - self._start

    def read(self) -> bytes:
        """The next bytes, b"" at the end; waits for the download."""
        while self.consumed >= self._available:
            if self.consumed == self._size:
                return b""
            self._listen()
        chunk = os.pread(self._file, min(_READ, self._available - self.consumed), self._offset)
        if not chunk:
            raise ValueError("the download shrank while it was unpacked")
        self._offset += len(chunk)
        if self.consumed - self._reported >= _REPORT_EVERY:
            self._reported = self.consumed
            self._channel.send(PROGRESS.pack(self.consumed))
        return chunk

    def _listen(self) -> None:
        message = self._channel.recv(64)
        if not message:
            raise BrokenPipeError(errno.EPIPE, "the daemon gave this job up")
        self._available, self._size = AVAILABLE.unpack(message)

    def finish(self) -> None:
        """Bytes may follow the end of the tar: they count for nothing but must be there."""
        while self.read():
            pass


class _Meter:
    """Every inflated byte: the diff id, and the limits against bombs."""

    def __init__(self, limits: Limits, source: _GrowingFile) -> None:
        self._limits = limits
        self._source = source
        self._hash = hashlib.sha256()
        self.total = 0

    def update(self, chunk: bytes) -> None:
        """Counts and hashes one piece."""
        self._hash.update(chunk)
        self.total += len(chunk)
        if self.total > self._limits.layer_bytes:
            raise TarError(f"it inflates to more than this node's limit of {self._limits.layer_bytes} bytes")
        bound = self._limits.inflate_ratio * self._source.consumed
        if self.total > max(self._limits.inflate_ratio_floor, bound):
            raise TarError(f"it inflates to more than {self._limits.inflate_ratio} times its size: a bomb")

    def diff_id(self) -> str:
        """The digest of the uncompressed layer."""
        return "sha256:" + self._hash.hexdigest()


def _remove(request: Mapping[str, Any], channel: socket.socket) -> dict[str, Any]:
    """Each as if it were the only one: what cannot go must not keep the others here. Raises the last failure."""
    failure: OSError | None = None
    layer_mounts.unmount(request.get("mounts", ""), request["paths"])
    for path in request["paths"]:
        try:
            _remove_one(path)
        except OSError as error:
            failure = error
    if failure is not None:
        raise failure
    return {}


def _remove_one(path: str) -> None:
    for place in (path, path + _SCRATCH, path + _EMPTY):  # of a job that was killed in the middle
        try:
            os.unlink(place)
        except IsADirectoryError:
            removal.remove_tree(place)
        except FileNotFoundError:
            continue


def _reconcile(request: Mapping[str, Any], channel: socket.socket) -> dict[str, Any]:
    return {"unmounted": layer_mounts.reconcile(request["mounts"], request["directory"])}


def _rebuild(request: Mapping[str, Any], channel: socket.socket) -> dict[str, Any]:
    """The archive that a layer's directory and skeleton make: hashed, and compressed into `output` if that is named."""
    if request["output"]:
        blob = pack.GzipBlob(request["output"])
        _rebuild_layer(request["layer"], blob.write)
        return blob.finish()
    digest = hashlib.sha256()
    _rebuild_layer(request["layer"], digest.update)
    return {"diff_id": "sha256:" + digest.hexdigest()}


def _rebuild_layer(layer: str, write: Callable[[bytes], object]) -> None:
    if layer.endswith(layer_file.SUFFIX):
        descriptor = os.open(layer, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            trailer = layer_file.read_from(descriptor)
            skeleton.rebuild_from_file(descriptor, trailer.skeleton_offset, trailer.skeleton_bytes, write)
        finally:
            os.close(descriptor)
        return
    skeleton.rebuild(os.path.join(layer, "skeleton"), os.path.join(layer, "fs"), write)


def _check(request: Mapping[str, Any], channel: socket.socket) -> dict[str, Any]:
    """Whether the metadata of a layer's file is what it was, and the diff id that its content makes; "" where it has no
    skeleton."""
    descriptor = os.open(request["layer"], os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        trailer = layer_file.read_from(descriptor)
        intact = layer_file.digest_of(descriptor, trailer.metadata) == trailer.digest and verity.is_as_kept(request["layer"])
    finally:
        os.close(descriptor)
    if not intact or not trailer.skeleton_bytes:
        return {"metadata": intact, "diff_id": ""}
    digest = hashlib.sha256()
    _rebuild_layer(request["layer"], digest.update)
    return {"metadata": True, "diff_id": "sha256:" + digest.hexdigest()}


def _protect(request: Mapping[str, Any], channel: socket.socket) -> dict[str, Any]:
    for path in request["paths"]:
        with suppress(FileNotFoundError):  # it has been removed meanwhile
            status = os.stat(path)
            if status.st_size <= 2 * status.st_blocks * 512:  # of holes too, of any size, every block is hashed
                verity.enable(path)
    return {}


def _pack(request: Mapping[str, Any], channel: socket.socket) -> dict[str, Any]:
    """Packs `directory` into the compressed layer `output`; `upper`: it is an overlay's."""
    blob = pack.GzipBlob(request["output"])
    excluded = frozenset(os.fsencode(path.strip("/")) for path in request["excluded"])
    directory = os.fsencode(request["directory"])
    if request["upper"]:
        excluded |= pack.made_for(directory, excluded)
    pack.pack(directory, blob, excluded, request["newest"])
    return blob.finish()


def _export(request: Mapping[str, Any], channel: socket.socket) -> dict[str, Any]:
    """Writes the tar `output` of `members`: each has a name and one of text, file, or layer with its size."""
    with open(request["output"], "xb") as out:
        for member in request["members"]:
            name = member["name"].encode()
            if "text" in member:
                data = member["text"].encode()
                out.write(tar_writer.header(tar_writer.file_entry(name, len(data))) + data)
                size = len(data)
            elif "file" in member:
                with open(member["file"], "rb") as source:
                    size = os.fstat(source.fileno()).st_size
                    out.write(tar_writer.header(tar_writer.file_entry(name, size)))
                    shutil.copyfileobj(source, out, _READ)
            else:
                size = member["size"]
                out.write(tar_writer.header(tar_writer.file_entry(name, size)))
                start = out.tell()
                _rebuild_layer(member["layer"], out.write)
                if out.tell() - start != size:
                    raise ValueError(f"layer {member['layer']} has changed since it was unpacked; try `image verify`")
            out.write(tar_writer.padding(size))
        out.write(tar_writer.END)
        out.flush()
        os.fsync(out.fileno())
    return {}


def _measure(request: Mapping[str, Any], channel: socket.socket) -> dict[str, Any]:
    walk = Walk(request["directory"])
    while not walk.step(3600):
        pass
    root = os.lstat(request["directory"])
    return {"bytes": max(0, walk.bytes - root.st_blocks * 512), "inodes": max(0, walk.inodes - 1)}


_JOBS: dict[str, Callable[[Mapping[str, Any], socket.socket], dict[str, Any]]] = {
    "unpack": _unpack,
    "complete": _complete,
    "settle": _settle,
    "remove": _remove,
    "reconcile": _reconcile,
    "rebuild": _rebuild,
    "check": _check,
    "protect": _protect,
    "pack": _pack,
    "export": _export,
    "measure": _measure,
    "take": checkpoint_files.take,
    "changes": checkpoint_files.apply_changes,
}
