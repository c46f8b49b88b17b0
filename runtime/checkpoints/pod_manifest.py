"""What a pod's checkpoint consists of. The directory is crisp's own form; what lies below it is as in a container's archive.

    <directory>/pod.json     written last: a directory without it is no checkpoint
    <directory>/<n>/         a container: config.dump, spec.dump, checkpoint/, rootfs-diff.tar, CRIU's logs
    <directory>/shm.tar      the pod's /dev/shm, if all running containers of the pod are in the checkpoint

`pod.json`: {"version": 1, "handler": NAME, "containers": [NAME, ...], "shm": BOOL}; the n-th container lies in `<n>`.
"""

from __future__ import annotations

import json
import os
import stat
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

from proto.errors import failed_precondition, invalid, not_found
from runtime.oci.json_fields import FILE_BYTES, Fields

NAME: Final = "pod.json"
SHM: Final = "shm.tar"
VERSION: Final = 1


@dataclass(frozen=True, slots=True)
class Manifest:
    """The content of pod.json."""

    handler: str
    """OCI runtime handler of the pod, by its own name."""
    containers: list[str]
    """Their names."""
    shm: bool
    version: int = VERSION


def write(directory: Path, manifest: Manifest) -> None:
    """Make the checkpoint whole: all of it reaches the disk before the manifest has its name. Blocks."""
    partial = directory / f"{NAME}.partial"
    partial.write_text(json.dumps(asdict(manifest)))
    for parent, _, files in os.walk(directory):
        for name in files:
            _sync(Path(parent, name), os.O_RDONLY)
        _sync(Path(parent), os.O_RDONLY | os.O_DIRECTORY)
    partial.rename(directory / NAME)
    _sync(directory, os.O_RDONLY | os.O_DIRECTORY)


def _sync(path: Path, flags: int) -> None:
    descriptor = os.open(path, flags | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read(directory: Path) -> Manifest:
    """The manifest of a checkpoint. Raises NOT_FOUND, INVALID_ARGUMENT or FAILED_PRECONDITION. Blocks."""
    path = directory / NAME
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise not_found(f"{directory} holds no checkpoint of a pod: {NAME}: {error.strerror}") from None
    with open(descriptor, "rb") as file:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise invalid(f"{path} is not a plain file")
        data = file.read(FILE_BYTES + 1)
    try:
        document = json.loads(data) if len(data) <= FILE_BYTES else None
    except (ValueError, RecursionError) as error:
        raise invalid(f"{path} is not JSON: {error}") from None
    fields = Fields(document, str(path))
    if (version := fields.number("version")) != VERSION:
        raise failed_precondition(f"{path} is of version {version}; this crisp restores version {VERSION}")
    manifest = Manifest(fields.required("handler"), list(fields.texts("containers")), fields.flag("shm") or False)
    fields.finish()
    return manifest
