"""A socket's place is taken from nobody who uses it."""

from __future__ import annotations

import errno
import socket
from pathlib import Path

import pytest

from kernel import sockets


def test_a_dead_socket_goes(tmp_path: Path) -> None:
    path = tmp_path / "s"
    sockets.make_room(str(path))
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    sockets.make_room(str(path))
    assert not path.exists()


@pytest.mark.parametrize("kind", [socket.SOCK_STREAM, socket.SOCK_SEQPACKET, socket.SOCK_DGRAM])
def test_one_that_is_used_stays(tmp_path: Path, kind: int) -> None:
    path = tmp_path / "s"
    with socket.socket(socket.AF_UNIX, kind) as theirs:
        theirs.bind(str(path))
        if kind != socket.SOCK_DGRAM:
            theirs.listen(0)
        for _ in range(3):  # also when its queue is full
            with pytest.raises(OSError, match="another program listens") as caught:
                sockets.make_room(str(path))
            assert caught.value.errno == errno.EADDRINUSE
        assert path.exists()


@pytest.mark.parametrize("make", [lambda p: p.write_text("precious"), lambda p: p.symlink_to("/etc/passwd"), Path.mkdir])
def test_what_is_no_socket_stays(tmp_path: Path, make: object) -> None:
    path = tmp_path / "s"
    make(path)  # type: ignore[operator]
    with pytest.raises(FileExistsError, match="not a socket"):
        sockets.make_room(str(path))
    assert path.lstat()
