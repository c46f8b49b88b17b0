"""Containers whose shim does not do its part: starts are refused, and what the shim leaves undone is done without it."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from proto.errors import Code, CrispError
from runtime import limits
from runtime.lifecycle import ContainerState, SandboxState
from runtime.pods import container_start, container_stop
from runtime.pods.node import Node
from runtime.pods.objects import Container, Sandbox


class Shim:
    """A shim that answers a kill with what it is told to."""

    def __init__(self, answer: CrispError | None = None) -> None:
        self.answer = answer
        self.killed = 0
        self.done = asyncio.Event()

    async def kill(self) -> None:
        self.killed += 1
        if self.answer is not None:
            raise self.answer
        self.done.set()


def made(state: ContainerState, shim: Shim | None = None) -> Any:
    sandbox: Any = SimpleNamespace(state=SandboxState.READY)
    record: Any = SimpleNamespace(
        id="c1", state=state, sandbox_id="s1", restored_from="", message="it was killed", log_path="/nowhere/0.log"
    )
    container: Any = Container(record, Sandbox(sandbox))
    container.shim = shim
    return container


def node(container: Any, **more: Any) -> Any:
    return SimpleNamespace(container=lambda _: container, **more)


async def test_a_start_without_a_shim_is_refused() -> None:
    container = made(ContainerState.CREATED)
    with pytest.raises(CrispError, match="c1 has no shim any more: it was killed") as caught:
        await container_start.start(node(container), "c1")
    assert caught.value.code is Code.FAILED_PRECONDITION


async def test_a_shim_that_lingers_is_asked_to_leave() -> None:
    shim = Shim()
    container = made(ContainerState.EXITED, shim)
    container.gone = shim.done
    container.watcher = asyncio.create_task(shim.done.wait())
    await container_stop.dismiss(node(container), container)
    assert shim.killed == 1
    await container.watcher
    container.watcher = None
    await container_stop.dismiss(node(container), container)
    assert shim.killed == 1, "who has left is not asked"


async def test_a_shim_that_does_not_answer_is_killed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    shim = Shim(CrispError(Code.DEADLINE_EXCEEDED, "no answer"))
    container = made(ContainerState.EXITED, shim)
    container.gone = shim.done
    container.watcher = asyncio.create_task(shim.done.wait())
    killed: list[str] = []
    loop = asyncio.get_running_loop()

    def kill_shim(bundle: str) -> None:
        killed.append(bundle)
        loop.call_soon_threadsafe(shim.done.set)

    monkeypatch.setattr("runtime.pods.container_stop.client.kill_shim", kill_shim)
    monkeypatch.setattr("runtime.pods.container_stop.cgroup_end.kill_container", lambda *_: killed.append("group"))
    with ThreadPoolExecutor(1) as blocking:
        paths = SimpleNamespace(bundle=lambda key: tmp_path / key)
        host = SimpleNamespace(hierarchies=None)
        await container_stop.dismiss(node(container, blocking=blocking, paths=paths, host=host), container)
    assert killed == ["group", str(tmp_path / "c1")]


def test_of_those_that_were_removed_the_last_are_remembered() -> None:
    node: Any = SimpleNamespace(removed={})
    for number in range(limits.REMOVED_CONTAINERS + 2):
        container: Any = SimpleNamespace(record=SimpleNamespace(id=str(number), exit_code=number))
        Node.remember(node, container)
    assert len(node.removed) == limits.REMOVED_CONTAINERS
    assert ("1" in node.removed, node.removed["2"]) == (False, 2)
