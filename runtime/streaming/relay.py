"""Copying between file descriptors and streams, chunk by chunk, as fast as the slower side takes it.

Descriptors are pipes, terminals or sockets, and nonblocking. Between two chunks other sessions get their
turn.
"""

from __future__ import annotations

import asyncio
import errno
import fcntl
import os
import struct
import termios
from typing import Final

from runtime.streaming.session import Stream, StreamResetError

CHUNK_BYTES: Final = 64 * 1024
"""A pipe's usual capacity."""

DRAIN_QUIET_SECONDS: Final = 0.1
"""After the process's exit: how long a stream must be silent, if others hold it open, to be taken as
finished."""

DRAIN_EXCESS_BYTES: Final = 1024 * 1024
"""After the process's exit: how much others may still write until they are not listened to any more."""


_HANGUPS: Final = frozenset(
    (
        *(errno.EPIPE, errno.EIO, errno.ECONNRESET, errno.ETIMEDOUT, errno.ECONNABORTED, errno.ENOTCONN),
        *(errno.EHOSTUNREACH, errno.ENETUNREACH, errno.ENETDOWN, errno.ENETRESET),
    )
)
"""The other end of a pipe, terminal or socket is gone."""


async def wait_readable(fd: int) -> None:
    """Return when `fd` can be read."""
    loop = asyncio.get_running_loop()
    ready = loop.create_future()
    loop.add_reader(fd, _wake, ready)
    try:
        await ready
    finally:
        loop.remove_reader(fd)


async def wait_writable(fd: int) -> None:
    """Return when `fd` can be written."""
    loop = asyncio.get_running_loop()
    ready = loop.create_future()
    loop.add_writer(fd, _wake, ready)
    try:
        await ready
    finally:
        loop.remove_writer(fd)


def _wake(ready: asyncio.Future[None]) -> None:
    if not ready.done():
        ready.set_result(None)


async def read_fd(fd: int) -> bytes:
    """Some bytes; none at the end, which is also a terminal whose last user is gone and a peer that has
    reset."""
    while True:
        try:
            return os.read(fd, CHUNK_BYTES)
        except BlockingIOError:
            await wait_readable(fd)
        except OSError as error:
            if error.errno in _HANGUPS:
                return b""
            raise


async def write_fd(fd: int, data: bytes) -> bool:
    """Write all of it; False if nobody reads any more."""
    view = memoryview(data)
    while view:
        try:
            view = view[os.write(fd, view) :]
        except BlockingIOError:
            await wait_writable(fd)
        except OSError as error:
            if error.errno in _HANGUPS:
                return False
            raise
    return True


class Output:
    """Copies a descriptor to a stream until its end; can be told that the process has exited."""

    def __init__(self, fd: int, stream: Stream) -> None:
        self._fd = fd
        self._stream = stream
        self._ready: asyncio.Future[None] | None = None
        self._rest: int | None = None
        """Bytes that are still listened to, from the process's exit on."""
        self._task = asyncio.create_task(self._copy())

    async def _copy(self) -> None:
        """Go on without the client if it gives up the stream: a process must not block on output nobody
        wants."""
        wanted = True
        while data := await self._read():
            try:
                if wanted:
                    await self._stream.write(data)
            except StreamResetError:
                wanted = False
            await asyncio.sleep(0)
        self._stream.end()

    async def _read(self) -> bytes:
        while self._rest is None or self._rest > 0:
            try:
                data = os.read(self._fd, CHUNK_BYTES)
            except BlockingIOError:
                if not await self._wait():
                    break
                continue
            except OSError as error:
                if error.errno in _HANGUPS:
                    break
                raise
            if self._rest is not None:
                self._rest -= len(data)
            return data
        return b""

    async def _wait(self) -> bool:
        """Return True when there is something to read or to reconsider, False if the process is gone and all
        is silent."""
        loop = asyncio.get_running_loop()
        self._ready = loop.create_future()
        loop.add_reader(self._fd, _wake, self._ready)
        try:
            async with asyncio.timeout(None if self._rest is None else DRAIN_QUIET_SECONDS):
                await self._ready
        except TimeoutError:
            return False
        finally:
            loop.remove_reader(self._fd)
        return True

    async def ended(self) -> None:
        """Return at the end of the output, or when the connection is lost."""
        await asyncio.wait((self._task,))

    async def drain(self) -> None:
        """Return when everything is sent that the process, which has exited, may have written.

        Where others keep the descriptor open, that is what waits in it now and, for a terminal's sake, what
        comes until it is silent for DRAIN_QUIET_SECONDS; but at most DRAIN_EXCESS_BYTES more. Raises
        ConnectionLostError.
        """
        self._rest = _readable_bytes(self._fd) + DRAIN_EXCESS_BYTES
        if self._ready is not None:
            _wake(self._ready)
        await self._task

    async def stop(self) -> None:
        """Copy no further."""
        self._task.cancel()
        await asyncio.wait((self._task,))


def _readable_bytes(fd: int) -> int:
    try:
        return int(struct.unpack("i", fcntl.ioctl(fd, termios.FIONREAD, bytes(4)))[0])
    except OSError:
        return 0


async def copy_input(stream: Stream, fd: int) -> None:
    """Copy a stream to a descriptor until its end.

    When nobody reads the descriptor any more, the rest is dropped: the client is not to be held up. Raises
    ConnectionLostError.
    """
    wanted = True
    try:
        while data := await stream.read():
            if wanted:
                wanted = await write_fd(fd, data)
            await asyncio.sleep(0)
    except StreamResetError:
        return
