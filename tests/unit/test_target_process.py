"""runtime/pods/target_process.py: a pid is used only as long as it is the target's."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from proto import api_pb2 as cri
from proto.errors import Code, CrispError
from runtime.lifecycle import ContainerState
from runtime.pods import target_process


class Lab:
    """A target with a process, and a container that wants to share its PID namespace."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(["sleep", "1000"])
        self.shim_says = "running"
        sandbox = object()
        record = SimpleNamespace(state=ContainerState.RUNNING, pid=self.process.pid)
        self.target: Any = SimpleNamespace(sandbox=sandbox, record=record, shim=SimpleNamespace(state=self._state))
        config = cri.ContainerConfig()
        options = config.linux.security_context.namespace_options
        options.pid, options.target_id = cri.TARGET, "target"
        self.container: Any = SimpleNamespace(sandbox=sandbox, record=SimpleNamespace(config=config))
        self.node: Any = SimpleNamespace(container=lambda _: self.target)

    async def _state(self) -> dict[str, str]:
        return {"state": self.shim_says}

    def end(self) -> None:
        self.process.kill()
        self.process.wait()


@pytest.fixture
def lab() -> Iterator[Lab]:
    found = Lab()
    yield found
    found.end()


async def test_a_target_that_lives(lab: Lab) -> None:
    async with target_process.held(lab.node, lab.container) as pid:
        assert pid == lab.process.pid


async def test_no_target(lab: Lab) -> None:
    lab.container.record.config.linux.security_context.namespace_options.pid = cri.CONTAINER
    async with target_process.held(lab.node, lab.container) as pid:
        assert pid == 0


async def test_a_target_that_ends_meanwhile(lab: Lab) -> None:
    """Its pid may have been another's by the time it was used."""
    with pytest.raises(CrispError, match="does not run") as caught:
        async with target_process.held(lab.node, lab.container):
            lab.end()
    assert caught.value.code is Code.FAILED_PRECONDITION


async def test_a_target_that_has_ended_unnoticed(lab: Lab) -> None:
    """The record says that it runs; the pid is nobody's, or another's of whom the shim knows nothing."""
    lab.shim_says = "stopped"
    with pytest.raises(CrispError, match="does not run"):
        async with target_process.held(lab.node, lab.container):
            raise AssertionError("not reached")
    lab.end()
    with pytest.raises(CrispError, match="does not run"):
        async with target_process.held(lab.node, lab.container):
            raise AssertionError("not reached")


async def test_a_target_of_another_pod(lab: Lab) -> None:
    lab.target.sandbox = object()
    with pytest.raises(CrispError, match="another pod"):
        async with target_process.held(lab.node, lab.container):
            raise AssertionError("not reached")
