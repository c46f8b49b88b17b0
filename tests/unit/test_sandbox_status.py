"""runtime/pods/sandbox_status.py"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from proto import api_pb2 as cri
from runtime.host.handlers import Handlers
from runtime.paths import Paths
from runtime.pods import sandbox_status
from runtime.pods.objects import Sandbox
from runtime.records import SandboxRecord


@pytest.mark.parametrize(("asked", "shown"), [("gone", "gone"), ("", "crun")])
def test_a_handler_that_is_no_more_keeps_nobody_from_looking(asked: str, shown: str) -> None:
    """A pod outlives the runtime that it was made with, and the configuration that named it."""
    sandbox = Sandbox(SandboxRecord("a" * 64, cri.PodSandboxConfig(), asked, 1))
    handlers = Handlers({}, {"crun": "no program crun"}, "crun")
    info = sandbox_status.verbose(sandbox, Paths(Path("/r"), Path("/s")), handlers)["info"]
    assert json.loads(info)["runtimeHandler"] == shown
