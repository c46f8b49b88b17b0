"""Whose /dev/shm a pod has: its own is in its checkpoint."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest

from proto import api_pb2 as cri
from runtime.checkpoints import checkpoint_pod


@pytest.mark.parametrize(("ipc", "own"), [(cri.POD, True), (cri.NODE, False)])
def test_has_own_shm(ipc: cri.NamespaceMode, own: bool) -> None:
    config = cri.PodSandboxConfig()
    config.linux.security_context.namespace_options.ipc = ipc
    sandbox = SimpleNamespace(record=SimpleNamespace(config=config))
    assert checkpoint_pod.has_own_shm(cast("Any", sandbox)) == own
