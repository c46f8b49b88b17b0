"""runtime/host/systemd.py"""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from runtime.host import systemd


@pytest.fixture
def listener(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as channel:
        channel.bind(str(tmp_path / "notify"))
        channel.setblocking(False)
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        yield channel


def test_notify(listener: socket.socket) -> None:
    systemd.notify("READY=1", "STATUS=x")
    assert listener.recv(100) == b"READY=1\nSTATUS=x"
    systemd.reloading()
    first, second = listener.recv(100).split(b"\n")
    assert first == b"RELOADING=1"
    assert second.startswith(b"MONOTONIC_USEC=")


def test_without_systemd(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    systemd.notify("READY=1")
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "nobody"))
    systemd.notify("READY=1")


@pytest.mark.parametrize(
    ("limit", "pid", "seconds"), [("", "", 0.0), ("3000000", "", 1.5), ("3000000", "1", 0.0), ("3000000", "own", 1.5)]
)
def test_watchdog(monkeypatch: pytest.MonkeyPatch, limit: str, pid: str, seconds: float) -> None:
    monkeypatch.setenv("WATCHDOG_USEC", limit)
    monkeypatch.setenv("WATCHDOG_PID", str(os.getpid()) if pid == "own" else pid)
    assert systemd.watchdog_seconds() == seconds


async def test_the_watchdog_is_fed(listener: socket.socket) -> None:
    task = asyncio.create_task(systemd.feed_watchdog(0.001))
    loop = asyncio.get_running_loop()
    assert await loop.sock_recv(listener, 100) == b"WATCHDOG=1"
    assert await loop.sock_recv(listener, 100) == b"WATCHDOG=1"
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


def test_a_slice_is_forgotten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = tmp_path / "systemctl"
    script.write_text(f'#!/bin/sh\necho "$@" >>{tmp_path}/said\necho "Unit x is not loaded" >&2\nexit 5\n')
    script.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    systemd.forget_slice("crisp-pod1.slice")
    assert (tmp_path / "said").read_text() == "stop -- crisp-pod1.slice\n"
    monkeypatch.setenv("PATH", "/nowhere")
    systemd.forget_slice("crisp-pod1.slice")  # no reason for a pod not to end
