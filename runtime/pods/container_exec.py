"""Processes that are started in a running container: ExecSync, and what the streaming server runs."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final

from kernel.failpoints import failpoint
from proto.errors import Code, CrispError, failed_precondition, invalid
from runtime import limits
from runtime.lifecycle import ContainerState
from runtime.oci import apparmor_loader
from runtime.oci.process import oom_score_adj

if TYPE_CHECKING:
    from runtime.pods.node import Node
    from runtime.pods.objects import Container
    from runtime.shims.client import ExecSession, ShimClient

READ_BYTES: Final = 256 * 1024
NO_CHANGES: Final[Mapping[str, Any]] = MappingProxyType({})


def running(node: Node, reference: str) -> tuple[Container, ShimClient]:
    """A container that runs, with its shim; FAILED_PRECONDITION if it does not run."""
    container = node.container(reference)
    if container.record.state is not ContainerState.RUNNING or container.shim is None:
        raise failed_precondition(f"container {container.record.id} is {container.record.state.value}, not running")
    return container, container.shim


def attachable(node: Node, reference: str) -> tuple[Container, ShimClient]:
    """As `running`, and one that is created: who attaches to it before its start misses nothing."""
    container = node.container(reference)
    if container.record.state is ContainerState.CREATED and container.shim is not None:
        return container, container.shim
    return running(node, reference)


def process(
    node: Node, container: Container, command: list[str], *, tty: bool, changes: Mapping[str, Any] = NO_CHANGES
) -> dict[str, Any]:
    """OCI process object of an exec: the container's own with another command line, and with the changes."""
    if any("\0" in argument for argument in command):
        raise invalid("an argument of the command holds a zero byte")
    if container.process is None:
        with open(node.paths.bundle(container.record.id) / "config.json", "rb") as file:
            container.process = json.loads(file.read().decode("utf-8", "surrogateescape"))["process"]
    # The score as it is now: an update may have changed it.
    score = oom_score_adj(container.record.resources.oom_score_adj, node.host)
    process = {**container.process, "args": command, "terminal": tty, "oomScoreAdj": score, **changes}
    names = {entry.partition("=")[0] for entry in changes.get("env", ())}
    if names:
        kept = (entry for entry in container.process["env"] if entry.partition("=")[0] not in names)
        process["env"] = [*kept, *changes["env"]]
    if tty and not any(entry.startswith("TERM=") for entry in process["env"]):
        process["env"] = [*process["env"], "TERM=xterm"]
    return process


async def exec_sync(node: Node, reference: str, command: list[str], timeout: int) -> tuple[bytes, bytes, int]:
    """Run a command; stdout and stderr (at most 16 MiB each) and its exit code.

    `timeout` in seconds, 0 for none. Raises DEADLINE_EXCEEDED after killing the whole process tree.
    """
    if not command:
        raise invalid("ExecSync without a command")
    container, shim = running(node, reference)
    await apparmor_loader.ensure_default(node.host, node.config.containers.apparmor_profile)
    try:
        async with asyncio.timeout(timeout or None):
            session = await shim.exec(process(node, container, command, tty=False))
    except TimeoutError:
        message = f"command {command[0]!r} timed out: it was not started within {timeout} s"
        raise CrispError(Code.DEADLINE_EXCEEDED, message) from None
    failpoint("exec.started")
    stdout, stderr = Capture(session.stdout), Capture(session.stderr)
    try:
        code = await _wait(session, command[0], timeout)
        # The exit code wins over what a grandchild that holds the pipes may still write.
        await asyncio.wait((stdout.ended, stderr.ended), timeout=limits.EXEC_DRAIN_SECONDS)
        return *_fit(bytes(stdout.data), bytes(stderr.data)), code
    finally:
        stdout.stop()
        stderr.stop()
        session.close()


async def _wait(session: ExecSession, name: str, timeout: int) -> int:
    try:
        return await asyncio.wait_for(session.wait(), timeout or None)
    except TimeoutError:
        await session.kill()
        raise CrispError(Code.DEADLINE_EXCEEDED, f"command {name!r} timed out: timeout of {timeout} s exceeded") from None


def _fit(stdout: bytes, stderr: bytes) -> tuple[bytes, bytes]:
    """Cut the longer one so that both fit into one message, which is all that a client reads."""
    room = limits.GRPC_MESSAGE_BYTES - limits.GRPC_OVERHEAD_BYTES
    if len(stdout) >= len(stderr):
        return stdout[: max(room - len(stderr), room // 2)], stderr[: room // 2]
    return stdout[: room // 2], stderr[: max(room - len(stdout), room // 2)]


class Capture:
    """Reads a pipe to its end, keeps the first 16 MiB and drops the rest, so that the writer is never held up."""

    def __init__(self, fd: int) -> None:
        self.data = bytearray()
        self.ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._fd = fd
        os.set_blocking(fd, False)
        asyncio.get_running_loop().add_reader(fd, self._readable)

    def _readable(self) -> None:
        try:
            chunk = os.read(self._fd, READ_BYTES)
        except BlockingIOError:
            return
        except OSError:
            chunk = b""
        if not chunk:
            self.stop()
            return
        room = limits.EXEC_SYNC_BYTES - len(self.data)
        self.data += chunk[: max(room, 0)]

    def stop(self) -> None:
        """Read no more; the fd stays its session's."""
        if not self.ended.done():
            asyncio.get_running_loop().remove_reader(self._fd)
            self.ended.set_result(None)
