"""Reading what a checkpoint consists of, which somebody else may have written: jobs of the worker (jobs.py).

    config.dump  spec.dump       JSON: what was checkpointed
    deleted.files                JSON: what had been removed of the image (CRI-O, Podman; crisp has whiteouts instead)
    rootfs-diff.tar              the writable layer
    checkpoint/<name>            CRIU's images

They come in a tar (gzip, zstd or plain), in the layers of an image, or in a directory. `take` puts the plain files of this
list into an empty directory, and leaves out whatever else there is; a link, a device or a second file of a name is an error.
`apply_changes` makes a writable layer of the diff, by the rules by which image layers are unpacked.
"""

from __future__ import annotations

import json
import os
import socket
import stat
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from imagesvc.limits import MAX_CHECKPOINT_FILES, MAX_CONFIG_BYTES, MIB, Limits
from imagesvc.tar import inflate, skeleton, tar_stream
from imagesvc.tar.header import TarError
from imagesvc.tar.tar_stream import Data, Entry, TarReader
from imagesvc.worker import unpack
from imagesvc.worker.copy_up import copy_content
from imagesvc.worker.entry_names import normalise
from imagesvc.worker.layer_directory import LayerDirectory
from imagesvc.worker.merged_view import MergedView
from kernel import capabilities
from kernel.descriptors import write_all
from shim import layer_mounts

CONFIG, SPEC, DELETED, DIFF = "config.dump", "spec.dump", "deleted.files", "rootfs-diff.tar"
IMAGES = "checkpoint"
_DOCUMENTS = frozenset(os.fsencode(name) for name in (CONFIG, SPEC, DELETED))
_REQUIRED = (CONFIG, SPEC, f"{IMAGES}/inventory.img")
_IMAGES = os.fsencode(IMAGES)
_READ = 1 * MIB
_CREATE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_TAKING = frozenset(("CAP_DAC_OVERRIDE",))
_APPLYING = frozenset(
    f"CAP_{name}" for name in ("CHOWN", "DAC_OVERRIDE", "FOWNER", "FSETID", "MKNOD", "SETFCAP", "SYS_ADMIN")
)
"""As for unpacking a layer, jobs.py."""


def take(request: Mapping[str, Any], _channel: socket.socket) -> dict[str, Any]:
    """Put the files of the archive or directory `path`, or of `layers` (topmost first), into the empty `target`."""
    path, places = request["path"], request["layers"]
    if path and os.path.isdir(path):
        places = [path]
    if places:
        directories = [layer_mounts.open_layer(place) for place in places]
        _enter(request["target"], _TAKING)
        _take_from_directories(directories)
    else:
        events = _events(_open_regular(path), Limits(**request["limits"]))
        _enter(request["target"], _TAKING)
        _take_from_archive(events)
    for name in _REQUIRED:
        if not os.path.exists(name):
            raise TarError(f"it has no {name}: this is no checkpoint of a container")
    return {}


def apply_changes(request: Mapping[str, Any], _channel: socket.socket) -> dict[str, Any]:
    """Apply the tar `diff` to the directory `target`, which lies on `lower`; then hide the paths that `deleted` lists."""
    limits = Limits(**request["limits"])
    events = _events(_open_regular(request["diff"]), limits)
    deleted = _deleted(request["deleted"])
    lower = MergedView([layer_mounts.open_layer(layer) for layer in request["lower"]])
    bones = skeleton.NoSkeleton()
    writer = unpack.LayerWriter(LayerDirectory(bones), lower, bones, limits)
    _enter(request["target"], _APPLYING)
    for event in events:
        if type(event) is Entry:
            writer.entry(event)
        elif type(event) is Data:
            writer.data(event)
    for path in deleted:
        if lower.lookup(path) is not None:
            writer.entry(_whiteout(path))
    writer.finish()
    return {}


def _enter(target: str, needed: frozenset[str]) -> None:
    """Make `target` all that this process can reach."""
    os.umask(0o077)
    os.chroot(target)
    os.chdir("/")
    os.umask(0 if needed is _APPLYING else 0o077)
    capabilities.keep(needed)


def _open_regular(path: str) -> int:
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        raise TarError(f"{path} is not a regular file")
    return descriptor


def _events(source: int, limits: Limits) -> Iterator[Entry | Data]:
    """What a tar has. The first bytes are read at once, for a decompressor cannot be imported after chroot."""
    size = os.fstat(source).st_size
    reader = inflate.open_reader(lambda: os.read(source, _READ))
    return _parse(reader.read, limits.layer_bytes, max(limits.inflate_ratio_floor, limits.inflate_ratio * size))


def _parse(read: Callable[[], bytes], most: int, bomb: int) -> Iterator[Entry | Data]:
    tar = TarReader()
    total = 0
    while chunk := read():
        total += len(chunk)
        if total > most:
            raise TarError(f"it has more than this node's limit of {most} bytes")
        if total > bomb:
            raise TarError("it inflates to so many times its size that it is a bomb")
        tar.receive_data(chunk)
        while (event := tar.next_event()) is not None:
            if isinstance(event, Entry | Data):
                yield event
    tar.close()


def _take_from_archive(events: Iterator[Entry | Data]) -> None:
    descriptor = -1
    taken = 0
    for event in events:
        if type(event) is Data:
            if descriptor >= 0:
                write_all(descriptor, event.view)
        elif type(event) is Entry:
            if descriptor >= 0:
                os.close(descriptor)
            descriptor = _begin(event)
            taken += descriptor >= 0
            if taken > MAX_CHECKPOINT_FILES:
                raise TarError(f"it has more than {MAX_CHECKPOINT_FILES} files")


def _begin(entry: Entry) -> int:
    """The new file that an entry's content goes to, -1 if it is not wanted."""
    name = normalise(entry.name)
    if not _wanted(name) or (name == _IMAGES and entry.type == tar_stream.DIRECTORY):
        return -1
    shown = name.decode(errors="backslashreplace")
    if entry.type != tar_stream.REGULAR or entry.segments is not None or name == _IMAGES:
        raise TarError(f"{shown} is not a plain file")
    _check_size(name, entry.size)
    return _create(name, shown)


def _wanted(name: bytes) -> bool:
    directory, _, base = name.rpartition(b"/")
    if directory:
        return directory == _IMAGES and base not in (b"", b".", b"..")
    return name in _DOCUMENTS or name in (os.fsencode(DIFF), _IMAGES)


def _check_size(name: bytes, size: int) -> None:
    if name in _DOCUMENTS and size > MAX_CONFIG_BYTES:
        raise TarError(f"{name.decode()} has more than {MAX_CONFIG_BYTES} bytes")


def _create(name: bytes, shown: str) -> int:
    if name.startswith(_IMAGES + b"/"):
        _make_images()
    try:
        return os.open(name, _CREATE, 0o600)
    except FileExistsError:
        raise TarError(f"{shown} is there twice") from None


def _make_images() -> None:
    try:
        os.mkdir(_IMAGES, 0o700)
    except FileExistsError:
        return


def _take_from_directories(directories: Sequence[int]) -> None:
    view = MergedView(directories)
    names = [*sorted(_DOCUMENTS), os.fsencode(DIFF), *sorted(_image_names(view, directories))]
    if len(names) > MAX_CHECKPOINT_FILES:
        raise TarError(f"it has more than {MAX_CHECKPOINT_FILES} files")
    _make_images()
    for name in names:
        found = view.lookup(name)
        if found is None:
            continue
        if not stat.S_ISREG(found.status.st_mode):
            raise TarError(f"{name.decode(errors='backslashreplace')} is not a plain file")
        _check_size(name, found.status.st_size)
        copy_content(found, name)


def _image_names(view: MergedView, directories: Sequence[int]) -> set[bytes]:
    names: set[bytes] = set()
    for directory in directories:
        try:
            opened = os.open(_IMAGES, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=directory)
        except OSError:
            continue  # absent here, or not a directory: then `lookup` finds nothing below it
        try:
            names.update(_IMAGES + b"/" + os.fsencode(name) for name in os.listdir(opened))
        finally:
            os.close(opened)
    return names


def _deleted(path: str) -> list[bytes]:
    """The paths in a `deleted.files`, relative to the root; none without the file."""
    if not path:
        return []
    with open(path, "rb") as file:
        document = json.loads(file.read(MAX_CONFIG_BYTES))
    if not isinstance(document, list) or not all(isinstance(name, str) for name in document):
        raise TarError(f"{DELETED} is not a list of paths")
    return [name for name in (normalise(os.fsencode(entry)) for entry in document) if name]


def _whiteout(path: bytes) -> Entry:
    parent, slash, base = path.rpartition(b"/")
    entry = Entry()
    entry.name = parent + slash + b".wh." + base
    return entry
