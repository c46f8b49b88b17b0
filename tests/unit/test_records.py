"""runtime/records.py: records of versions that knew less."""

from __future__ import annotations

from proto import api_pb2 as cri
from runtime.records import ContainerRecord, SandboxRecord


def test_what_an_older_version_did_not_know_is_nothing() -> None:
    """No quota project above all: it would be given back, and is another container's."""
    document = ContainerRecord("c", "p", cri.ContainerConfig(), "i", "", 1).document()
    needed = ("id", "sandbox_id", "config", "image_id", "log_path", "created_at", "resources")
    old = ContainerRecord.parse({key: document[key] for key in needed})
    values = {key: value for key, value in old.document().items() if key not in (*needed, "stop_signal")}
    assert set(map(bool, values.values())) == {False}, values
    assert old.stop_signal == 15

    document = SandboxRecord("p", cri.PodSandboxConfig(), "", 1).document()
    needed = ("id", "config", "handler", "created_at")
    sandbox = SandboxRecord.parse({key: document[key] for key in needed})
    assert set(map(bool, (value for key, value in sandbox.document().items() if key not in needed))) == {False}
