"""What is removed at its end: not under who follows it, and not once something was made in it."""

from __future__ import annotations

import asyncio
import fcntl
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from proto import api_pb2 as cri
from runtime.lifecycle import ContainerState, SandboxState
from runtime.pods import ended, sandbox_stop
from runtime.pods.objects import Sandbox


def over(log_directory: Path) -> Sandbox:
    """A pod in which nothing has run for long."""
    config = cri.PodSandboxConfig(annotations={"io.crisp.remove-at-end": "true"}, log_directory=str(log_directory))
    record: Any = SimpleNamespace(id="pod", config=config, state=SandboxState.READY, ready_at=1)
    return Sandbox(record)


def removed(sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch, *, meanwhile: Any = lambda: None) -> bool:
    """Whether a look removes it; `meanwhile` happens before it has the pod's lock."""
    gone: list[str] = []

    async def remove(_node: Any, key: str, still: Any = lambda: True) -> None:
        meanwhile()
        if still():
            gone.append(key)

    monkeypatch.setattr(sandbox_stop, "remove", remove)

    async def look() -> None:
        with ThreadPoolExecutor(1) as pool:
            node: Any = SimpleNamespace(
                sandboxes={"pod": sandbox}, containers={}, blocking=pool, to_be_removed=asyncio.Event()
            )
            following = asyncio.create_task(ended.follow(node))
            for _ in range(200):
                await asyncio.sleep(0.001)
            following.cancel()
            await asyncio.gather(following, return_exceptions=True)

    monkeypatch.setattr(ended, "LOOK_SECONDS", 0.01)
    asyncio.run(look())
    return bool(gone)


def test_what_is_followed_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lock = os.open(tmp_path, os.O_RDONLY)
    fcntl.flock(lock, fcntl.LOCK_SH)
    assert not removed(over(tmp_path), monkeypatch)
    os.close(lock)
    assert removed(over(tmp_path), monkeypatch)
    assert removed(over(tmp_path / "nosuch"), monkeypatch)


def test_a_container_that_is_made_meanwhile_saves_its_pod(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sandbox = over(tmp_path)
    container: Any = SimpleNamespace(
        record=SimpleNamespace(id="new", state=ContainerState.CREATING, config=cri.ContainerConfig())
    )
    assert not removed(sandbox, monkeypatch, meanwhile=lambda: sandbox.containers.update(new=container))
