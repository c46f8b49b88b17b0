"""CheckpointContainer: the state of a running container, written as an archive that tools for checkpoints read.

    freeze ─▶ CRIU writes the processes ─▶ the writable layer is packed ─▶ thaw ─▶ archive complete, fsync ─▶ renamed

Processes and files are of one moment, for the container is frozen over both. The archive appears under its name when it is
whole, or not at all. Layout, as `checkpointctl` knows it:

    config.dump        who this was: id, name, image, OCI runtime, times
    spec.dump          the OCI configuration
    checkpoint/        CRIU's images
    rootfs-diff.tar    the writable layer, as an image layer
    stats-dump dump.log   CRIU's
"""

from __future__ import annotations

import asyncio
import datetime
import io
import json
import os
import shutil
import tarfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from imagesvc import pack
from proto import api_pb2 as cri
from proto.errors import Code, CrispError, failed_precondition, invalid
from runtime import container_exec

if TYPE_CHECKING:
    from runtime.node import Container, Node


async def checkpoint(node: Node, request: cri.CheckpointContainerRequest) -> None:
    """Write the archive to `request.location`; the container goes on.

    FAILED_PRECONDITION with CRIU's reason if it cannot be done, DEADLINE_EXCEEDED if it took longer than asked.
    """
    if not request.location.startswith("/"):
        raise invalid(f"{request.location!r} is not an absolute path")
    if shutil.which("criu") is None:
        raise failed_precondition("this node has no CRIU, without which no container can be checkpointed")
    container, _ = container_exec.running(node, request.container_id)
    begin = time.monotonic()
    async with container.lock:
        directory = node.paths.writable_layer(container.record.id) / "checkpoint"
        loop = asyncio.get_running_loop()
        try:
            await loop.run_in_executor(node.blocking, _fresh, directory)
            await _freeze_and_dump(node, container, directory)
            if request.timeout and time.monotonic() - begin > request.timeout:
                raise CrispError(Code.DEADLINE_EXCEEDED, f"the checkpoint took longer than {request.timeout} s")
            await loop.run_in_executor(node.blocking, _archive, node, container, directory, request.location)
        finally:
            await loop.run_in_executor(node.blocking, shutil.rmtree, directory, True)


async def _freeze_and_dump(node: Node, container: Container, directory: Path) -> None:
    container, shim = container_exec.running(node, container.record.id)
    await shim.pause()
    try:
        await shim.checkpoint(str(directory / "checkpoint"), str(directory))
        upper = node.paths.writable_layer(container.record.id) / "upper"
        await asyncio.get_running_loop().run_in_executor(node.blocking, _pack, upper, directory / "rootfs-diff.tar")
    except CrispError as error:
        unsaid = f"was {container.record.handler} built with CRIU?"
        reason = await asyncio.to_thread(_criu_reason, directory / "dump.log", unsaid)
        # runc goes on about its log file, which will not be there any more.
        text = f"container {container.record.id} cannot be checkpointed: {error.message.splitlines()[0]}"
        raise failed_precondition(f"{text}: {reason}" if reason else text) from error
    finally:
        if shim.alive:
            await shim.resume()


def _fresh(directory: Path) -> None:
    shutil.rmtree(directory, ignore_errors=True)
    (directory / "checkpoint").mkdir(mode=0o700, parents=True)


def _pack(upper: Path, target: Path) -> None:
    with open(target, "wb") as sink:
        pack.pack(os.fsencode(upper), sink, frozenset(), None)


def _criu_reason(log: Path, unsaid: str) -> str:
    """The first error in CRIU's log, which is where it says what it could not do; `unsaid` if CRIU never ran."""
    try:
        text = log.read_text(errors="replace")
    except OSError:
        return unsaid
    return next((line.partition("Error ")[2].strip() for line in text.splitlines() if "Error " in line), "")


def _archive(node: Node, container: Container, directory: Path, location: str) -> None:
    """Put the files together under a name beside `location`, and rename when that is whole."""
    partial = f"{location}.{container.record.id[:12]}.partial"
    bundle = node.paths.bundle(container.record.id)
    try:
        with open(partial, "xb") as file:
            os.fchmod(file.fileno(), 0o600)
            with tarfile.open(fileobj=file, mode="w") as tar:
                _add_json(tar, "config.dump", _description(container))
                tar.add(bundle / "config.json", "spec.dump")
                for name in ("checkpoint", "rootfs-diff.tar", "stats-dump", "dump.log"):
                    if (directory / name).exists():
                        tar.add(directory / name, name)
            file.flush()
            os.fsync(file.fileno())
        os.rename(partial, location)
    except OSError as error:
        Path(partial).unlink(missing_ok=True)
        raise failed_precondition(f"cannot write the checkpoint to {location}: {error.strerror}") from None


def _add_json(tar: tarfile.TarFile, name: str, document: dict[str, Any]) -> None:
    data = json.dumps(document, indent=1).encode()
    entry = tarfile.TarInfo(name)
    entry.size, entry.mode, entry.mtime = len(data), 0o600, int(time.time())
    tar.addfile(entry, io.BytesIO(data))


def _description(container: Container) -> dict[str, Any]:
    record = container.record
    image = record.config.image
    return {
        "id": record.id,
        "name": record.config.metadata.name,
        "rootfsImage": image.image,
        "rootfsImageRef": record.image_id,
        "rootfsImageName": image.user_specified_image or image.image,
        "runtime": record.handler,
        "createdTime": _time(record.created_at / 1e9),
        "checkpointedTime": _time(time.time()),
        "restoredTime": "0001-01-01T00:00:00Z",
        "restored": False,
    }


def _time(seconds: float) -> str:
    return datetime.datetime.fromtimestamp(seconds, datetime.UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")
