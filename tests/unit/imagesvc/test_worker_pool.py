"""Workers as the daemon sees them: what a job has answered is received, however it ended."""

from __future__ import annotations

import json
import os
import signal
import socket
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from imagesvc.worker.pool import Job, JobFailed, WorkerPool
from proto.errors import CrispError


def sockets() -> tuple[socket.socket, socket.socket]:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ours.setblocking(False)
    return ours, theirs


def begin(theirs: socket.socket) -> None:
    pidfd = os.pidfd_open(os.getpid())
    socket.send_fds(theirs, [b"{}"], [pidfd])
    os.close(pidfd)


async def test_answer_of_a_job_that_has_not_read_everything() -> None:
    """The kernel reports a reset before the answer."""
    ours, theirs = sockets()
    job = Job()
    with ours:
        with theirs:
            begin(theirs)
            job.available(5, 10)
            ours.send(b"not read")
            theirs.send(json.dumps({"error": "os", "message": "full", "errno": 28}).encode())
        with pytest.raises(JobFailed, match="full"):
            await job.follow(ours, "unpack")


async def test_job_that_ends_without_an_answer() -> None:
    ours, theirs = sockets()
    with ours:
        with theirs:
            begin(theirs)
            ours.send(b"not read")
        with pytest.raises(CrispError, match="was it killed"):
            await Job().follow(ours, "unpack")


async def test_job_that_has_not_begun() -> None:
    ours, theirs = sockets()
    with ours:
        theirs.close()
        with pytest.raises(ConnectionError):
            await Job().follow(ours, "unpack")


async def test_server_that_is_killed_is_replaced(tmp_path: Path) -> None:
    pool = WorkerPool(2)
    try:
        for _ in range(3):
            answer = await pool.run({"job": "measure", "directory": str(tmp_path)})
            assert answer["inodes"] == 0
            assert pool._process is not None
            os.kill(pool._process.pid, signal.SIGKILL)
    finally:
        await pool.close()


async def test_requests_of_any_size(tmp_path: Path) -> None:
    """Above what a socket's message may be; and the server is the same one afterwards."""
    pool = WorkerPool(2)
    try:
        names = [f"/nowhere/{i}-{'x' * 200}" for i in range(20_000)]
        (tmp_path / "gone").mkdir()
        await pool.run({"job": "remove", "paths": [*names, str(tmp_path / "gone")]})
        process = pool._process
        await pool.run({"job": "remove", "paths": []})
        assert pool._process is process
        assert not (tmp_path / "gone").exists()
    finally:
        await pool.close()


async def test_a_defect_in_a_worker_is_an_answer_and_a_line_in_the_log() -> None:
    pool = WorkerPool(2)
    try:
        with capture_logs() as logs, pytest.raises(JobFailed, match="KeyError") as caught:
            await pool.run({"job": "remove"})
        assert caught.value.kind == "defect"
        assert "Traceback" in logs[0]["trace"]
    finally:
        await pool.close()
