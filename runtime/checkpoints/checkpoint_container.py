"""CheckpointContainer: the state of a running container, written as an archive that tools for checkpoints read.

    freeze ─▶ CRIU writes the processes ─▶ the writable layer is packed ─▶ thaw ─▶ archive complete, fsync ─▶ renamed

Processes and files are of one moment, for the container is frozen over both. The archive appears under its name when it is
whole, or not at all. Layout, as `checkpointctl` knows it:

    config.dump        who this was: id, name, image, OCI runtime, times
    spec.dump          the OCI configuration
    checkpoint/        CRIU's images
    rootfs-diff.tar    the writable layer, as an image layer
    stats-dump dump.log   CRIU's

A container thaws with the session of the daemon that froze it: nothing that happens to the daemon leaves one frozen.
"""

from __future__ import annotations

import asyncio
import datetime
import json
import os
import tarfile
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from imagesvc.worker import pack
from kernel import removal
from proto import api_pb2 as cri
from proto.errors import Code, CrispError, failed_precondition, invalid
from runtime.checkpoints import notes
from runtime.oci import document
from runtime.pods import container_exec, criu

if TYPE_CHECKING:
    from runtime.pods.node import Node
    from runtime.pods.objects import Container
    from runtime.shims.client import ShimClient


async def checkpoint(node: Node, request: cri.CheckpointContainerRequest) -> None:
    """Write the archive to `request.location`; the container goes on.

    FAILED_PRECONDITION with CRIU's reason if it cannot be done, DEADLINE_EXCEEDED if it took longer than asked.
    """
    if not request.location.startswith("/"):
        raise invalid(f"{request.location!r} is not an absolute path")
    criu.require()
    container, _ = container_exec.running(node, request.container_id)
    begin = time.monotonic()
    partial = Path(f"{request.location}.{container.record.id[:12]}.partial")
    loop = asyncio.get_running_loop()
    async with container.lock:
        directory = node.paths.writable_layer(container.record.id) / "checkpoint"
        async with notes.writing(node.paths.checkpoint_notes, node.blocking, [partial, directory]):
            await loop.run_in_executor(node.blocking, removal.discard_tree, directory)
            async with frozen(node, [container]):
                await dump(node, container, directory)
            if request.timeout and time.monotonic() - begin > request.timeout:
                raise CrispError(Code.DEADLINE_EXCEEDED, f"the checkpoint took longer than {request.timeout} s")
            await loop.run_in_executor(node.blocking, _archive, directory, partial, request.location)
            await loop.run_in_executor(node.blocking, removal.discard_tree, directory)


@asynccontextmanager
async def frozen(node: Node, containers: Sequence[Container]) -> AsyncIterator[None]:
    """Freeze running containers, all of them before anything else happens, and thaw them whatever that is."""
    shims = [container_exec.running(node, container.record.id)[1] for container in containers]
    try:
        for outcome in await asyncio.gather(*(shim.pause() for shim in shims), return_exceptions=True):
            if isinstance(outcome, BaseException):
                raise outcome
        yield
    finally:
        await asyncio.shield(asyncio.ensure_future(_thaw(shims)))


async def _thaw(shims: Sequence[ShimClient]) -> None:
    outcomes = await asyncio.gather(*(shim.resume() for shim in shims if shim.alive), return_exceptions=True)
    failures = [outcome for outcome in outcomes if isinstance(outcome, CrispError) and outcome.code is not Code.UNAVAILABLE]
    if failures:
        raise failures[0]


async def dump(node: Node, container: Container, directory: Path) -> None:
    """Write what a checkpoint consists of into the new `directory`; the container is frozen.

    FAILED_PRECONDITION with the reason if CRIU cannot, or if `directory` cannot be written.
    """
    container, shim = container_exec.running(node, container.record.id)
    loop = asyncio.get_running_loop()
    try:
        await loop.run_in_executor(node.blocking, _describe, node, container, directory)
        await shim.checkpoint(str(directory / "checkpoint"), str(directory))
        upper = node.paths.writable_layer(container.record.id) / "upper"
        await loop.run_in_executor(node.blocking, pack_directory, upper, directory / "rootfs-diff.tar")
    except CrispError as error:
        unsaid = f"was {container.record.handler} built with CRIU?"
        reason = await asyncio.to_thread(criu.reason, directory / "dump.log", unsaid)
        # runc goes on about its log file, which will not be there any more.
        text = f"container {container.record.id} cannot be checkpointed: {error.message.splitlines()[0]}"
        raise failed_precondition(f"{text}: {reason}" if reason else text) from error
    except OSError as error:
        raise cannot_write(directory, error) from None
    except ValueError as error:
        raise failed_precondition(
            f"the writable layer of container {container.record.id} cannot be packed: {error}"
        ) from None


def cannot_write(place: object, error: OSError) -> CrispError:
    """The client's place for the checkpoint is missing, full or not writable."""
    return failed_precondition(f"cannot write the checkpoint to {place}: {error.strerror}")


def _describe(node: Node, container: Container, directory: Path) -> None:
    directory.mkdir(mode=0o700)
    (directory / "checkpoint").mkdir(mode=0o700)
    (directory / "config.dump").write_text(json.dumps(_description(container), indent=1))
    spec = document.shown((node.paths.bundle(container.record.id) / "config.json").read_bytes())
    (directory / "spec.dump").write_bytes(document.encode(spec))


def pack_directory(source: Path, target: Path) -> None:
    """Pack a directory, in which nothing moves, as an image layer. Blocks."""
    with open(target, "wb") as sink:
        pack.pack(os.fsencode(source), sink, frozenset(), None)


def _archive(directory: Path, partial: Path, location: str) -> None:
    """Put the files together in a new file, and rename it when that is whole."""
    try:
        with open(partial, "xb") as file:
            os.fchmod(file.fileno(), 0o600)
            with tarfile.open(fileobj=file, mode="w") as tar:
                for name in ("config.dump", "spec.dump", "checkpoint", "rootfs-diff.tar", "stats-dump", "dump.log"):
                    if (directory / name).exists():
                        tar.add(directory / name, name)
            file.flush()
            os.fsync(file.fileno())
        os.rename(partial, location)
    except OSError as error:
        raise cannot_write(location, error) from None


def _description(container: Container) -> dict[str, Any]:
    record = container.record
    image = record.config.image
    return {
        "id": record.id,
        "name": record.config.metadata.name,
        "rootfsImage": image.image,
        "rootfsImageRef": record.image_id,
        "rootfsImageName": record.image_name or image.user_specified_image or image.image,
        "runtime": record.handler,
        "createdTime": _time(record.created_at / 1e9),
        "checkpointedTime": _time(time.time()),
        "restoredTime": "0001-01-01T00:00:00Z",
        "restored": bool(record.restored_from),
    }


def _time(seconds: float) -> str:
    return datetime.datetime.fromtimestamp(seconds, datetime.UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")
