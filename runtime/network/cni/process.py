"""One run of a plugin's program: bytes in, bytes out, a deadline, and nothing left of it.

A plugin is the leader of a process group; what it starts itself (its address manager, iptables) is ended with it.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import Mapping
from typing import Final, NamedTuple

MAX_OUTPUT: Final = 1024 * 1024
"""Bytes kept of each stream; a result has a few hundred."""

LAST_OUTPUT_SECONDS: Final = 1.0
"""How long a plugin's output may stay open after its end, in the hands of something that it has left behind."""

STANDARD_PATH: Final = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


class Outcome(NamedTuple):
    """How a program ended."""

    status: int
    """Exit status; negative: the signal."""
    output: bytes
    errors: bytes


class _Protocol(asyncio.SubprocessProtocol):
    """Gathers output; stdout is 1, stderr 2, as their descriptors are."""

    def __init__(self) -> None:
        loop = asyncio.get_running_loop()
        self.streams = {1: bytearray(), 2: bytearray()}
        self.exited: asyncio.Future[None] = loop.create_future()
        self.drained: asyncio.Future[None] = loop.create_future()
        self._open = {1, 2}

    def pipe_data_received(self, fd: int, data: bytes) -> None:
        stream = self.streams[fd]
        stream += data[: MAX_OUTPUT - len(stream)]

    def pipe_connection_lost(self, fd: int, exc: Exception | None) -> None:
        self._open.discard(fd)
        if not self._open and not self.drained.done():
            self.drained.set_result(None)

    def process_exited(self) -> None:
        if not self.exited.done():
            self.exited.set_result(None)


async def run(
    program: str, environment: Mapping[str, str], data: bytes, *, seconds: float, inherited: tuple[int, ...] = ()
) -> Outcome:
    """Run a program with `data` on its standard input; `inherited` descriptors stay open in it.

    Raises TimeoutError when it did not end within `seconds`; it is killed then, and when the caller is cancelled. Raises
    OSError if it cannot be started.
    """
    transport, protocol = await asyncio.get_running_loop().subprocess_exec(
        _Protocol,
        program,
        env={"PATH": os.environ.get("PATH", STANDARD_PATH), **environment},
        cwd="/",
        start_new_session=True,
        pass_fds=inherited,
    )
    try:
        feed = transport.get_pipe_transport(0)
        assert isinstance(feed, asyncio.WriteTransport)
        feed.write(data)
        feed.close()
        await asyncio.wait((protocol.exited,), timeout=seconds)
        if not protocol.exited.done():
            raise TimeoutError
        await asyncio.wait((protocol.drained,), timeout=LAST_OUTPUT_SECONDS)
    except BaseException:
        if not protocol.exited.done():
            with contextlib.suppress(ProcessLookupError):
                os.killpg(transport.get_pid(), signal.SIGKILL)
            await asyncio.shield(protocol.exited)
        raise
    finally:
        transport.close()
    status = transport.get_returncode()
    assert status is not None
    return Outcome(status, bytes(protocol.streams[1]), bytes(protocol.streams[2]))
