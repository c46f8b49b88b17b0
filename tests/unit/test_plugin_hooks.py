"""Without NRI plugins the hooks of the verbs do nothing, and build nothing."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from proto import api_pb2 as cri
from runtime.config.nri import NriConfig
from runtime.nri import messages
from runtime.nri.plugins import Plugins
from runtime.pods import plugin_hooks
from runtime.pods.objects import Container, Sandbox
from runtime.records import ContainerRecord, SandboxRecord


async def test_without_plugins_nothing_is_done(monkeypatch: pytest.MonkeyPatch) -> None:
    def built(*_: object) -> None:
        raise AssertionError("a message was built")

    monkeypatch.setattr(messages, "pod_message", built)
    monkeypatch.setattr(messages, "container_message", built)
    node: Any = SimpleNamespace(plugins=Plugins(NriConfig()))
    sandbox = Sandbox(SandboxRecord(id="s", config=cri.PodSandboxConfig(), handler="", created_at=1))
    record = ContainerRecord(
        id="c", sandbox_id="s", config=cri.ContainerConfig(), image_id="i", log_path="/l", created_at=1, made_at=2
    )
    container = Container(record, sandbox)
    await plugin_hooks.run_sandbox(node, sandbox)
    assert await plugin_hooks.create(node, container, {}) is None
    await plugin_hooks.created(node, container)
    await plugin_hooks.start(node, container)
    await plugin_hooks.started(node, container)
    assert await plugin_hooks.update(node, container, cri.LinuxContainerResources()) is None
    await plugin_hooks.updated(node, container)
    await plugin_hooks.update_sandbox(node, sandbox, cri.LinuxContainerResources(), cri.LinuxContainerResources())
    await plugin_hooks.sandbox_updated(node, sandbox)
    assert (sandbox.known, container.known) == (True, True), "a plugin that joins now is told of both"
    plugin_hooks.container_stopped(node, container)
    await plugin_hooks.stop_answered(container)
    await plugin_hooks.container_removed(node, container)
    await plugin_hooks.sandbox_stopped(node, sandbox)
    await plugin_hooks.sandbox_removed(node, sandbox)
    assert (sandbox.known, container.known) == (False, False)
