"""What the streaming server streams: processes and ports of this node's pods, lent by their shims."""

from __future__ import annotations

import socket
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from proto import api_pb2 as cri
from proto.errors import CrispError, failed_precondition, invalid
from runtime.lifecycle import SandboxState
from runtime.network.netns import dial_in_netns
from runtime.oci import apparmor_loader
from runtime.pods import container_exec
from runtime.shims.connection import close_all

if TYPE_CHECKING:
    from runtime.pods.node import Node
    from runtime.pods.objects import Container
    from runtime.shims.client import AttachSession, ExecSession
    from runtime.streaming.seam import ProcessIO


class StreamSources:
    """The streaming server's backend."""

    def __init__(self, node: Node) -> None:
        self._node = node

    async def exec(
        self,
        container_id: str,
        cmd: Sequence[str],
        *,
        tty: bool,
        stdin: bool,
        stdout: bool,
        stderr: bool,
        size: tuple[int, int] | None,
        changes: Mapping[str, Any],
    ) -> ProcessIO:
        """Start a process in a running container."""
        container, shim = container_exec.running(self._node, container_id)
        await apparmor_loader.ensure_default(self._node.host, self._node.config.containers.apparmor_profile)
        process = container_exec.process(self._node, container, list(cmd), tty=tty, changes=changes)
        if size is not None:
            process["consoleSize"] = {"width": size[0], "height": size[1]}
        return ExecIO(await shim.exec(process, tty=tty, stdin=stdin, stdout=stdout, stderr=stderr))

    async def detached(self, container_id: str, cmd: Sequence[str], *, tty: bool, changes: Mapping[str, Any]) -> None:
        """Start a process that nobody reads, and that goes on by itself."""
        container_exec.running(self._node, container_id)[1].require("leave")  # before anything runs
        none: dict[str, Any] = {"stdin": False, "stdout": False, "stderr": False, "size": None}
        io = await self.exec(container_id, cmd, tty=tty, changes=changes, **none)
        try:
            await io.leave()
        finally:
            close_all(*(fd for fd in (io.stdin, io.stdout, io.stderr) if fd is not None))
            await io.close()

    async def attach(self, container_id: str, *, tty: bool, stdin: bool, stdout: bool, stderr: bool) -> ProcessIO:
        """Connect to the streams of a container that runs, or is about to, from now on."""
        container, shim = container_exec.attachable(self._node, container_id)
        if tty != container.record.config.tty:
            has = "a" if container.record.config.tty else "no"
            raise invalid(f"container {container.record.id} has {has} terminal: attach accordingly")
        if stdin and not container.record.config.stdin:
            raise invalid(f"container {container.record.id} was made without stdin")
        return AttachIO(await shim.attach(stdin=stdin, stdout=stdout, stderr=stderr), container)

    async def dial(self, sandbox_id: str, port: int) -> socket.socket:
        """Connect to a port inside the pod."""
        record = self._node.sandbox(sandbox_id).record
        if record.state is not SandboxState.READY:
            raise failed_precondition(f"sandbox {record.id} is {record.state.value}, not ready")
        own = record.config.linux.security_context.namespace_options.network != cri.NODE
        return await dial_in_netns(str(self._node.paths.namespace(record.id, "net")) if own else None, port)


class _LentIO:
    """The lent descriptors; they pass to the streaming session, which closes them."""

    def __init__(self, session: ExecSession | AttachSession) -> None:
        self._session = session
        self.stdin, self.stdout, self.stderr = (
            fd if fd >= 0 else None for fd in (session.stdin, session.stdout, session.stderr)
        )
        session.stdin = session.stdout = session.stderr = -1

    def resize(self, width: int, height: int) -> None:
        """Set the terminal's size."""
        self._session.resize(width, height)

    async def close(self) -> None:
        """End the session: an exec's processes are killed, a container is let go of."""
        self._session.close()


class ExecIO(_LentIO):
    """A process that was started for the session."""

    def __init__(self, session: ExecSession) -> None:
        super().__init__(session)
        self._exec = session

    async def close_stdin(self) -> None:
        """Nothing to do: the process sees the end of its stdin when the session closes the descriptor."""

    async def leave(self) -> None:
        """Let it go on when the session ends."""
        await self._exec.leave()

    async def wait(self) -> int:
        """The process's exit code."""
        return await self._exec.wait()


class AttachIO(_LentIO):
    """A container's own streams."""

    def __init__(self, session: AttachSession, container: Container) -> None:
        super().__init__(session)
        self._attach = session
        self._container = container
        container.attached += 1

    async def close(self) -> None:
        """Let go of the container."""
        self._container.attached -= 1
        await super().close()

    async def leave(self) -> None:
        """Nothing to do: a container does not end with who looks at it."""

    async def close_stdin(self) -> None:
        """Pass the end of the client's input on, if this was the only client that is meant to give any."""
        if self._container.record.config.stdin_once:
            try:
                await self._attach.close_stdin()
            except CrispError:
                return  # the container has ended

    async def wait(self) -> int:
        """Returns when the container has ended."""
        await self._container.exited.wait()
        return self._container.record.exit_code
