"""Pipes and pseudo-terminals of container processes."""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import struct
import termios

TIOCGPTPEER = 0x5441
PIPE_SIZE = 1 << 20  # bytes; the default limit of /proc/sys/fs/pipe-max-size
# One read. Twice as much gains 5 % of log throughput; the buffers of a burst count against the shim's memory.
READ_SIZE = 1 << 18  # bytes


def make_pipe(size: int = PIPE_SIZE, mode: int = 0o600) -> tuple[int, int]:
    """A close-on-exec pipe (read end, write end) of `size` bytes if the host permits it, else of its default.

    `mode` is for those who open it anew by /proc/self/fd, as /dev/stdout is opened: a pipe belongs to the shim's user, and
    the container's process may be any other, by its configuration, by itself, or because its ids are mapped.
    """
    read_fd, write_fd = os.pipe2(os.O_CLOEXEC)
    os.fchmod(write_fd, mode)
    try:
        fcntl.fcntl(write_fd, fcntl.F_SETPIPE_SZ, size)
    except OSError as error:
        # EPERM, EBUSY: the user's quota of pipe pages is used up (pipe-user-pages-soft).
        if error.errno not in (errno.EPERM, errno.EBUSY):
            raise
    return read_fd, write_fd


OUTPUT = 0o622  # mode of a process's output: whoever it has become may write to it
INPUT = 0o644  # and of its input


def open_slave(master: int) -> int:
    """The other side of a pseudo-terminal, by its master: its name may lie in another mount namespace (ioctl_tty(2))."""
    return fcntl.ioctl(master, TIOCGPTPEER, os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC)


def resize(tty_fd: int, width: int, height: int) -> None:
    """Tell a pseudo-terminal its size in characters; its foreground process gets SIGWINCH."""
    clamp = (1 << 16) - 1
    size = struct.pack("HHHH", min(height, clamp), min(width, clamp), 0, 0)
    fcntl.ioctl(tty_fd, termios.TIOCSWINSZ, size)


class ConsoleSocket:
    """Where the OCI runtime sends the master of the pseudo-terminal it has made (runc's docs/terminals.md).

    It lies in `directory`; `path` is valid for other processes whatever the directory's length, for a socket's name holds
    108 bytes only.
    """

    def __init__(self, directory: str, name: str) -> None:
        self._directory = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        self._file = os.path.join(directory, name)
        self.path = f"/proc/{os.getpid()}/fd/{self._directory}/{name}"
        try:
            self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        except OSError:
            os.close(self._directory)
            raise
        self._socket.bind(self.path)
        self._socket.listen(1)
        self._socket.setblocking(False)

    def receive(self) -> int:
        """The master that was sent; BlockingIOError if none was. Call it once the runtime has ended."""
        peer, _ = self._socket.accept()
        with peer:
            _, fds, _, _ = socket.recv_fds(peer, 4096, 1)
        if not fds:
            raise BlockingIOError(errno.EAGAIN, "the OCI runtime sent no terminal")
        os.set_inheritable(fds[0], False)
        return fds[0]

    def close(self) -> None:
        """Remove the socket."""
        self._socket.close()
        os.close(self._directory)
        try:
            os.unlink(self._file)
        except FileNotFoundError:
            return


def read_some(fd: int) -> bytes | None:
    """What is there to read; b"" at the end, None if there is nothing yet.

    A pty's master says EIO when the last process has closed the other side.
    """
    try:
        return os.read(fd, READ_SIZE)
    except BlockingIOError:
        return None
    except OSError as error:
        if error.errno == errno.EIO:
            return b""
        raise
